"""A line a validation: how far, how well, how long still."""

import io
import logging
import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anomalib_cxr.callbacks import validation_lines as module
from anomalib_cxr.callbacks.validation_lines import ValidationLines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Bar:
    is_on = True

    def disable(self) -> None:
        self.is_on = False


def trainer_at(done: int, **changes: Any) -> SimpleNamespace:
    """A trainer of 30 epochs of 10 batches, after ``done`` of them."""
    made = SimpleNamespace(
        state=SimpleNamespace(fn="fit"), sanity_checking=False, is_global_zero=True, max_epochs=30, max_steps=-1,
        num_training_batches=10, fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=done - 1)),
        callback_metrics={"image_AUROC": torch.tensor(0.75), "train_loss": torch.tensor(0.5), "image_F1Score": 1.0},
        progress_bar_callback=Bar(),
    )  # fmt: skip
    vars(made).update(changes)
    return made


def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, **changes: Any) -> list[str]:
    """Resumed after 100 of the batches, 6 s for each: what is said after 150 and 300 of them."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    callback = ValidationLines()
    with caplog.at_level(logging.INFO):
        callback.on_train_start(trainer_at(100, **changes), None)
        for done in (150, 300):
            clock[0] = (done - 100) * 6.0
            callback.on_validation_end(trainer_at(done, **changes), None)
    return caplog.messages


def test_steps_values_and_minutes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert lines(monkeypatch, caplog) == [
        "Step 150 of 300: image_AUROC 0.75, train_loss 0.5, 15 min left",
        "Step 300 of 300: image_AUROC 0.75, train_loss 0.5, 0 min left",
    ]


def test_lengths_in_steps_and_without_an_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert "Step 150 of 400: image_AUROC 0.75, train_loss 0.5, 25 min left" in lines(
        monkeypatch, caplog, max_steps=400, max_epochs=-1
    )
    assert "Step 150 of ?: image_AUROC 0.75, train_loss 0.5" in lines(
        monkeypatch, caplog, num_training_batches=math.inf
    )


@pytest.mark.parametrize("changes", [{"sanity_checking": True}, {"is_global_zero": False}])
def test_silence(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not lines(monkeypatch, caplog, **changes)


def test_a_terminal_keeps_its_bar_and_gets_no_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for stream, is_on in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stdout", stream)
        bar = Bar()
        ValidationLines().setup(trainer_at(0, progress_bar_callback=bar), None, "fit")
        assert bar.is_on == is_on
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert not lines(monkeypatch, caplog)
