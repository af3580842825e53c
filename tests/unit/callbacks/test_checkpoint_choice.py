"""Which validation is kept as the best."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from anomalib_cxr.callbacks.checkpoint_choice import MONITOR, CheckpointChoice


def keep(choice: CheckpointChoice, root: Path, scores: list[float]) -> list[int]:
    """Steps at which a checkpoint was saved."""
    saved: list[int] = []
    for step, score in enumerate(scores, start=1):
        trainer = SimpleNamespace(
            state=SimpleNamespace(fn="fit"),
            sanity_checking=False,
            callback_metrics={MONITOR: torch.tensor(score)},
            global_step=step,
            default_root_dir=root,
            save_checkpoint=lambda path, step=step: saved.append(step),
        )
        choice.on_validation_end(trainer, None)
    return saved


@pytest.mark.parametrize("scores", [[float("nan"), 0.6, float("nan"), 0.7, 0.5], [0.1, 0.6, 0.7, 0.7]])
def test_nan_is_never_the_best(scores: list[float], tmp_path: Path) -> None:
    choice = CheckpointChoice()
    saved = keep(choice, tmp_path, scores)
    running, expected = -1.0, []
    for step, score in enumerate(scores, start=1):
        if score > running:  # False for NaN
            running = score
            expected.append(step)
    assert saved == expected
    assert choice.best_score == pytest.approx(0.7)


def test_a_resumed_run_forgets_a_best_that_is_nan(tmp_path: Path) -> None:
    choice = CheckpointChoice()
    choice.load_state_dict({"best_score": float("nan"), "best_step": 3, "best_path": "best.ckpt"})
    assert choice.best_path is None
    assert keep(choice, tmp_path, [0.4]) == [1]
