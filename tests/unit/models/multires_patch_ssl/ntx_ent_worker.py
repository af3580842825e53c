"""One of two processes of test_ntx_ent_loss.py; imports torch only, so that it starts quickly."""

import importlib.util
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

FILE = Path(__file__).parents[4] / "anomalib_cxr" / "models" / "multires_patch_ssl" / "ntx_ent_loss.py"


def encoder():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()


def data():
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 8, 6, dtype=torch.float64, generator=generator)
    return first, second, torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])


def work(rank, folder):
    """Save the loss and gradient, averaged over processes as DistributedDataParallel does."""
    spec = importlib.util.spec_from_file_location("ntx_ent_loss", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = encoder()
    first, second, image = (tensor[4 * rank : 4 * rank + 4] for tensor in data())
    results = []
    for index in (None, image):
        model.zero_grad()
        loss = module.NTXentLoss(0.2)(*model(torch.cat((first, second))).chunk(2), index)
        loss.backward()
        values = [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        for value in values:
            dist.all_reduce(value)
        results.append([value / 2 for value in values])
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.barrier()
    dist.destroy_process_group()
