"""Training steps, banks and scores of every detector on a pretend device equal the CPU's, and mix no devices."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kit
import pretend_device
import pytest
import torch
from anomalib.engine import Engine
from torch.utils.data import DataLoader

from anomalib_cxr.data import PhantomCXR
from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.step_training import StepTrainingMixin

# Autograd counts the devices at the first backward of a process: these tests need one that has had none.
OWN_PROCESS = "CXR_PRETEND_DEVICE"
in_its_own_process = pytest.mark.skipif(OWN_PROCESS not in os.environ, reason="run by the test of the own process")


@pytest.mark.skipif(OWN_PROCESS in os.environ, reason="this is that process")
def test_all_of_this_in_a_process_of_its_own() -> None:
    words = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(words, env=os.environ | {OWN_PROCESS: "1"}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:]
    assert f"{len(kit.detectors()) + 1} passed" in run.stdout


@pytest.fixture(scope="module")
def device() -> torch.device:
    return pretend_device.register()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phantoms")


def _films(root: Path) -> PhantomCXR:
    sizes = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    return PhantomCXR(root=root, image_size=(64, 64), num_train=8, val_per_class=2, test_per_class=2, **sizes)


def trains(model: Any) -> bool:
    return type(model).training_loss is not StepTrainingMixin.training_loss


def _everything(model: Any, images: torch.Tensor, paths: list[str], loader: list[Any]) -> dict[str, torch.Tensor]:
    """Loss and gradients of a step, and the scores and maps that a new bank gives; on the CPU."""
    found: dict[str, torch.Tensor] = {}
    if trains(model):
        model.train()
        model.zero_grad()
        batch = SimpleNamespace(image=images, image_path=paths)  # Anomalib's own wants plain tensors
        losses = model.training_loss(batch, torch.Generator().manual_seed(5))
        loss = sum(losses.values()) if isinstance(losses, dict) else losses
        loss.backward()
        found["loss"] = loss.detach()
        found |= {f"gradient {name}": each.grad for name, each in model.named_parameters() if each.grad is not None}
    model.eval()
    with torch.no_grad():
        if isinstance(model, BankMixin):
            model.build_bank(loader)
        predictions = model.model(images)
    found |= {"score": predictions.pred_score, "map": predictions.anomaly_map}
    return {name: tensor.cpu().clone() for name, tensor in found.items()}


@in_its_own_process
@pytest.mark.parametrize("detector", kit.detectors(), ids=lambda each: each.__name__)
def test_a_step_a_bank_and_scores_stay_on_their_device(
    detector: type, device: torch.device, root: Path, tmp_path: Path
) -> None:
    model = kit.small(detector, tiny=True)
    films = _films(root)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, enable_progress_bar=False, logger=False)
    engine.fit(model, datamodule=films)
    dataset = model.without_augmentation(films.train_data)
    batches = DataLoader(dataset, batch_size=4, collate_fn=dataset.collate_fn)
    loader = [SimpleNamespace(image=each.image.as_subclass(torch.Tensor), paths=each.image_path) for each in batches]
    images, paths = loader[0].image, loader[0].paths
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    here = _everything(model, images, paths, loader)
    model.load_state_dict(state, strict=False)
    there = _everything(model.to(device), images.to(device), paths, loader)
    if trains(model):
        model.train()
        batch = SimpleNamespace(image=images.to(device), image_path=paths)
        pretend_device.waits.clear()
        model.training_loss(batch, torch.Generator().manual_seed(6))
        assert pretend_device.waits == []
    assert here.keys() == there.keys()
    for name, expected in here.items():  # other memory layouts round otherwise
        difference = (there[name].double() - expected.double()).abs().max()
        assert difference <= 1e-3 * expected.double().abs().max(), name


@in_its_own_process
def test_the_pretend_device_refuses_what_a_real_one_refuses(device: torch.device) -> None:
    here, there = torch.ones(2), torch.ones(2, device=device)
    for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: there @ here):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device=device, generator=torch.Generator())
    assert (there + 1.0).cpu().tolist() == [2.0, 2.0]
    assert there[torch.tensor([0])].device == device
