"""Whole DeepSVDD runs: the change of stage step by step, resumed before and after it, and what ends a run."""

import copy
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from lightning.pytorch import Callback
from sklearn.metrics import roc_auc_score
from tiny_radiographs import TinyRadiographs
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from anomalib_cxr.models import DeepSVDD

#: Three steps as an autoencoder and three towards the centre, validated every second: the change is within an epoch.
SMALL: dict[str, Any] = {"image_size": 32, "max_steps": 6, "steps_per_epoch": 2, "pretraining_steps": 3, "seed": 3}
QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}


class Recorder(Callback):
    """Keeps the network before each step, what was logged of it, and the checkpoint of each validation."""

    def __init__(self, kept: Path | None = None) -> None:
        self.kept = kept
        self.networks: list[Any] = []
        self.terms: list[str] = []
        self.momenta: list[int] = []

    def on_fit_start(self, trainer, pl_module) -> None:
        stock = pl_module.training_loss

        def noted(batch, generator):
            self.networks.append(copy.deepcopy(pl_module.model))
            self.momenta.append(len(trainer.optimizers[0].state))
            losses = stock(batch, generator)
            self.terms += losses
            return losses

        pl_module.training_loss = noted

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if self.kept is not None and trainer.current_epoch:
            (checkpoint,) = Path(trainer.default_root_dir).rglob("model.ckpt")
            shutil.copy(checkpoint, self.kept / f"{2 * trainer.current_epoch}.ckpt")

    def on_fit_end(self, trainer, pl_module) -> None:
        del pl_module.training_loss


def fit(root: Path, films: Path, *callbacks: Callback, ckpt_path: Path | None = None, **arguments: Any) -> Any:
    model = get_model("deep_svdd", **SMALL | arguments)
    engine = Engine(default_root_dir=root, callbacks=list(callbacks), **QUIET)
    engine.fit(model, datamodule=TinyRadiographs(films), ckpt_path=ckpt_path)
    return model


class Fitted(NamedTuple):
    model: Any
    steps: Recorder
    root: Path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Fitted:
    root = tmp_path_factory.mktemp("deep_svdd")
    steps = Recorder(root)
    return Fitted(fit(root / "run", tiny_root, steps), steps, root)


def films_of(dataset: Any) -> Tensor:
    return resize(torch.stack([dataset[number].image for number in range(len(dataset))]), [32, 32], antialias=True)


def normal_films(root: Path) -> Tensor:
    data = TinyRadiographs(root)
    data.setup()
    return films_of(data.train_data)


def test_the_stage_changes_at_its_step_to_the_centre_of_those_weights(fitted: Fitted, tiny_root: Path) -> None:
    steps = fitted.steps
    assert steps.terms == ["reconstruction"] * 3 + ["distance"] * 3
    assert not any(network.centre.any() for network in steps.networks[:3])
    network = copy.deepcopy(steps.networks[3]).eval()
    assert steps.networks[3].training, "the films were looked at in evaluation mode, and training went on"
    with torch.no_grad():
        mean = network.encoder(network.normalised(normal_films(tiny_root))).mean(dim=0)
    expected = torch.tensor([value if abs(value) > 0.1 else math.copysign(0.1, value) for value in mean.tolist()])
    assert 0 < int((mean.abs() > 0.1).sum()) < 128
    torch.testing.assert_close(network.centre, expected)
    for later in (*steps.networks[4:], fitted.model.model):
        assert torch.equal(later.centre, network.centre)
        # What the second stage has no use for stays as it was.
        for name, weight in later.decoder.named_parameters():
            assert torch.equal(weight, network.decoder.get_parameter(name))
        assert not torch.equal(later.encoder.code.weight, network.encoder.code.weight)


def test_each_stage_has_an_optimiser_of_its_own(fitted: Fitted) -> None:
    encoder, decoder = 4, 4
    assert fitted.steps.momenta == [0, encoder + decoder, encoder + decoder, 0, encoder, encoder]


def test_the_training_films_span_zero_to_one(fitted: Fitted, tiny_root: Path) -> None:
    seen = fitted.steps.networks[0].normalised(normal_films(tiny_root))
    assert (float(seen.min()), float(seen.max())) == pytest.approx((0, 1), abs=1e-5)


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_resumed_before_or_after_the_change_equals_an_unbroken_one(
    fitted: Fitted, tiny_root: Path, step: int
) -> None:
    resumed = fit(fitted.root / f"resumed_{step}", tiny_root, ckpt_path=fitted.root / f"{step}.ckpt")
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value) or not value.numel(), name


def test_runs_repeat_and_the_checkpoint_holds_all(fitted: Fitted, tiny_root: Path) -> None:
    torch.manual_seed(17)  # whatever went before
    again = fit(fitted.root / "again", tiny_root)
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value) or not value.numel(), name
    (checkpoint,) = (fitted.root / "run").rglob("model.ckpt")
    fresh, films = DeepSVDD.load_from_checkpoint(checkpoint).eval(), normal_films(tiny_root)
    with torch.no_grad():
        for found, kept in zip(fresh.model(films), fitted.model.model.eval()(films), strict=True):
            assert found is kept is None or torch.equal(found, kept)


def test_the_radius_waits_then_follows_the_last_steps_films(tmp_path: Path, tiny_root: Path) -> None:
    """Twenty steps of description: for a fifteenth of them, steps 0 and 1, the radius stays 0."""
    steps = Recorder()
    longer = {"max_steps": 20, "steps_per_epoch": 20, "pretraining_steps": 0, "objective": "soft_boundary", "nu": 0.3}
    fit(tmp_path, tiny_root, steps, **longer)
    radii = [float(network.radius) for network in steps.networks]
    assert radii[:3] == [0, 0, 0]
    assert all(radius > 0 for radius in radii[3:])
    assert len(set(radii[3:])) == 17


def test_a_network_that_maps_all_films_to_one_point_ends_the_run(tmp_path: Path, tiny_root: Path) -> None:
    done = []

    class Collapsing(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            done.append(pl_module.stage.name)
            with torch.no_grad():
                pl_module.model.encoder.code.weight.zero_()

    with pytest.raises(RuntimeError, match="DeepSVDD has collapsed"):
        fit(tmp_path, tiny_root, Collapsing())
    assert done == ["pretraining"] * 3 + ["description"], "an autoencoder may do so"


def test_a_lost_loss_is_named(tmp_path: Path, tiny_root: Path) -> None:
    with pytest.raises(RuntimeError, match=r"The loss term (reconstruction|distance) is (nan|inf) at step \d+"):
        fit(tmp_path, tiny_root, steps_per_epoch=6, learning_rate=1e30, optimizer="sgd")


@pytest.mark.slow
def test_the_spot_is_found_and_seen(tmp_path: Path, tiny_root: Path) -> None:
    model = fit(tmp_path, tiny_root, max_steps=200, steps_per_epoch=200, pretraining_steps=40, learning_rate=1e-3)
    data = TinyRadiographs(tiny_root)
    data.setup()
    labels = torch.tensor([bool(item.gt_label) for item in data.test_data])
    with torch.no_grad():
        found = model.eval().model(films_of(data.test_data))
    assert roc_auc_score(labels, found.pred_score) >= 0.9
    # The spot lies in the left lung.
    rows, columns = zip(*(divmod(int(one.argmax()), 32) for one in found.anomaly_map[labels, 0]), strict=True)
    hits = [8 <= row < 24 and column < 16 for row, column in zip(rows, columns, strict=True)]
    assert sum(hits) >= 0.75 * len(hits)
