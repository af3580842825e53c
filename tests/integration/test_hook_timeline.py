"""The order of hooks that `StepTrainingMixin` documents, and the stages of a training, recorded in short fits."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from lightning.pytorch import Callback
from tiny_radiographs import TinyRadiographs
from toy_detector import ToyDetector

from anomalib_cxr.callbacks import PredictionsWriter
from anomalib_cxr.callbacks.checkpoint_choice import CheckpointChoice
from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor
from anomalib_cxr.models.components.stages import Stage, stage_at

EVENTS: list[str] = []


def noting(kind: type, label: str, *hooks: str) -> list[tuple[type, str, object]]:
    """Have the hooks of a class noted."""
    replaced = []
    for hook in hooks:
        stock = vars(kind)[hook]

        def noted(self, *args, _stock=stock, _name=f"{label}.{hook}", **kwargs):
            EVENTS.append(_name)
            return _stock(self, *args, **kwargs)

        replaced.append((kind, hook, stock))
        setattr(kind, hook, noted)
    return replaced


class Banked(BankMixin, ToyDetector, AnomalibModule):
    def build_bank(self, loader) -> None:
        assert not self.training
        EVENTS.append(f"build_bank at {self.steps_trained}")
        del loader

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> torch.Tensor:
        EVENTS.append("training_loss")
        return super().training_loss(batch, generator)

    def on_stage_start(self, stage: Stage) -> None:
        EVENTS.append(f"on_stage_start {stage.name}")

    def on_save_checkpoint(self, checkpoint) -> None:
        EVENTS.append("on_save_checkpoint")
        super().on_save_checkpoint(checkpoint)


def engine(root: Path, **kwargs) -> Engine:
    return Engine(
        default_root_dir=root, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, **kwargs
    )


@pytest.fixture
def noted():
    EVENTS.clear()
    replaced = [
        *noting(PredictionsWriter, "writer", "on_validation_batch_end", "on_validation_epoch_end", "on_fit_end"),
        *noting(PredictionsWriter, "writer", "on_test_batch_end"),
        *noting(RankPreservingPostProcessor, "post_processor", "on_validation_batch_end", "on_validation_epoch_end"),
        *noting(CheckpointChoice, "choice", "on_validation_end", "load_chosen"),
    ]
    yield
    for kind, hook, stock in replaced:
        setattr(kind, hook, stock)


def test_hooks_come_in_the_documented_order(tmp_path: Path, tiny: TinyRadiographs, noted) -> None:
    del noted
    tiny.eval_batch_size = 24
    engine(tmp_path).fit(Banked(max_steps=1), datamodule=tiny)
    assert EVENTS == [
        "on_stage_start train",
        "training_loss",
        "build_bank at 1",
        "writer.on_validation_batch_end",
        "post_processor.on_validation_batch_end",
        "writer.on_validation_epoch_end",
        "post_processor.on_validation_epoch_end",
        "choice.on_validation_end",
        "on_save_checkpoint",  # best.ckpt
        "on_save_checkpoint",  # model.ckpt
        "choice.load_chosen",
        "writer.on_fit_end",
    ]


class Staged(ToyDetector, AnomalibModule):
    """Learns twice: the second stage takes the first one's codes as its centre."""

    def __init__(self, lengths: Sequence[int] = (4, 4), **kwargs) -> None:
        super().__init__(max_steps=sum(lengths), **kwargs)
        self.lengths = lengths
        self.register_buffer("centre", torch.zeros(self.model.encoder.out_features))
        self.seen: list[tuple[int, str]] = []
        self.began: list[tuple[int, str]] = []

    @property
    def stages(self) -> tuple[Stage, Stage]:
        return Stage("pre-train", self.lengths[0]), Stage("fit", self.lengths[1])

    def on_stage_start(self, stage: Stage) -> None:
        self.began.append((self.steps_trained, stage.name))
        if stage.name == "fit":
            self.centre.copy_(self.model.encoder.bias.detach() + torch.rand(()))

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> torch.Tensor:
        self.seen.append((self.steps_trained, self.stage.name))
        if self.stage.name == "pre-train":
            return super().training_loss(batch, generator)
        grey = batch.image.mean(dim=1).flatten(1)
        return (self.model.encoder(grey) - self.centre).square().mean()


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if pl_module.steps_trained == self.step:
            raise KeyboardInterrupt


def fit(root: Path, data: TinyRadiographs, ckpt_path: Path | None = None, **kwargs) -> tuple[Staged, Engine]:
    torch.manual_seed(0)
    model, runner = Staged(), engine(root, **kwargs)
    runner.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, runner


def test_stages_begin_once_and_only_the_last_one_chooses(tmp_path: Path, tiny: TinyRadiographs) -> None:
    model, runner = fit(tmp_path, tiny)
    assert model.began == [(0, "pre-train"), (4, "fit")]
    assert model.seen == [*((step, "pre-train") for step in range(4)), *((step, "fit") for step in range(4, 8))]
    assert runner.trainer.global_step == 8
    assert model._choice.best_step in {6, 8}


@pytest.mark.parametrize("stop", [2, 4, 6], ids=["within the first", "between", "within the last"])
def test_a_resumed_training_in_stages_equals_an_unbroken_one(tmp_path: Path, tiny: TinyRadiographs, stop: int) -> None:
    unbroken, _ = fit(tmp_path / "unbroken", tiny)
    with pytest.raises(BaseException):  # noqa: B017 - Lightning turns the interrupt into an exit
        fit(tmp_path / "stopped", tiny, callbacks=[StopAt(stop)])
    (half,) = (tmp_path / "stopped").rglob("model.ckpt")
    assert torch.load(half, weights_only=True)["global_step"] == stop
    resumed, runner = fit(tmp_path / "resumed", tiny, ckpt_path=half)
    assert runner.trainer.global_step == 8
    assert resumed.began == [event for event in unbroken.began if event[0] >= stop]
    assert unbroken._choice.best_step == resumed._choice.best_step
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


class TwoOptimisers(ToyDetector, AnomalibModule):
    """Steps two optimisers by hand in each batch, which Lightning counts as two steps."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.batches = 0

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.model.encoder, self.model.decoder)]

    def training_step(self, batch, *args, **kwargs):
        self.batches += 1
        loss = super().training_step(batch, *args, **kwargs)
        optimizers = self.optimizers()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss


def test_length_is_counted_in_batches_whatever_the_number_of_optimisers(tmp_path: Path, tiny: TinyRadiographs) -> None:
    model, runner = TwoOptimisers(max_steps=6), engine(tmp_path)
    runner.fit(model, datamodule=tiny)
    assert model.batches == 6
    assert runner.trainer.global_step == 12


def test_the_stage_of_a_step() -> None:
    stages = [Stage("a", 2), Stage("b", 1), Stage("c", 3)]
    assert [stage_at(stages, step) for step in range(8)] == [0, 0, 1, 2, 2, 2, 2, 2]
