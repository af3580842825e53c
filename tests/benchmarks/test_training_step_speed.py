"""One training step of AnatPaste beside the same network trained plainly: ``pytest -m benchmark -s <this file>``.

The plain step is what the published method costs at least: three channels in PyTorch's default layout, float32, the
network alone, without the pasting that the published code does image by image beside it.
"""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from anomalib_cxr.augmentations import build_pasting, jitter_intensity
from anomalib_cxr.callbacks.freed_memory import freed_memory_kept
from anomalib_cxr.models.anat_paste.torch_model import AnatPasteModel

BATCH, SIDE, ROUNDS = 32, 128, 8
THREADS = int(os.environ.get("CXR_BENCH_THREADS", "2"))
LABELS = torch.arange(2).repeat_interleave(BATCH)


def plain_step() -> Callable[[], None]:
    network = nn.Sequential(
        timm.create_model("resnet18", num_classes=0),
        nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(),
        nn.Linear(512, 128), nn.Linear(128, 2),
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9, weight_decay=3e-5)
    images = torch.rand(2 * BATCH, 3, SIDE, SIDE)

    def step() -> None:
        loss = F.cross_entropy(network(images), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(mixed: bool) -> Callable[[], None]:
    model = AnatPasteModel("resnet18")
    model.backbone.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=3e-5)
    pasting, generator = build_pasting("anatpaste"), torch.Generator().manual_seed(0)
    raw = torch.rand(BATCH, 3, SIDE, SIDE)
    lungs = torch.zeros(BATCH, 1, SIDE, SIDE, dtype=torch.bool)
    lungs[..., 30:100, 20:55] = lungs[..., 30:100, 73:108] = True

    def step() -> None:
        images = jitter_intensity(raw.mean(dim=1, keepdim=True), 0.1, generator)
        pasted = [paste.image for paste in pasting(images, lungs, generator)]
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = F.cross_entropy(model.logits(torch.cat([images, *pasted])), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@pytest.mark.benchmark
def test_a_training_step_beside_the_plain_network() -> None:
    torch.set_num_threads(THREADS)
    steps = {"plain network, float32": plain_step(), "ours, float32": our_step(False), "ours, bf16": our_step(True)}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):  # in turns, so that all suffer alike; the first warms up
        for name, step in steps.items():
            with freed_memory_kept() if name.startswith("ours") else nullcontext():
                step()  # memory fills
                start = time.perf_counter()
                step()
                if turn:
                    taken[name].append(time.perf_counter() - start)
    plain = min(taken["plain network, float32"])
    print(f"\n{THREADS} threads, {BATCH} + {BATCH} images at {SIDE}²; least of {ROUNDS} rounds (median)")
    for name, times in taken.items():
        median = sorted(times)[len(times) // 2]
        print(f"{name:24} {min(times):.2f} s ({median:.2f}), {min(times) / plain:.2f} of the plain network")
    assert min(taken["ours, float32"]) < plain
