"""What is attached to runs: one place, which every Anomalib model passes."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback

from anomalib_cxr.callbacks.film_assessor import FilmAssessor
from anomalib_cxr.callbacks.findings_check import FindingsCheck
from anomalib_cxr.callbacks.predictions_writer import PredictionsWriter
from anomalib_cxr.callbacks.validation_lines import ValidationLines


def with_run_callbacks(model: Any, callbacks: Callback | Sequence[Callback]) -> list[Callback]:
    """Put what every run has before a model's own callbacks.

    Our models call this; for all others the plugin calls it where Anomalib asks a model for its callbacks. A run gets
    them if the model or the datamodule is one of ours: they keep the hash of their split.

    Args:
        model: An ``AnomalibModule`` that is attached to a trainer, or not.
        callbacks: The model's own.

    Returns:
        All, first those that must see scores before the post-processor changes them. One that the trainer or the model
        has already is taken, and not made anew: it knows the validation that came before.
    """
    given = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    trainer = getattr(model, "_trainer", None)
    datamodule = getattr(trainer, "datamodule", None)
    if not (hasattr(model, "split_sha256") or hasattr(type(datamodule), "split_hash")):
        return given
    known = [*given, *getattr(trainer, "callbacks", ())]
    kinds = (FilmAssessor, PredictionsWriter, FindingsCheck, ValidationLines)
    ours = [_present(kind, known) or kind() for kind in kinds]
    return [*ours, *(one for one in given if one not in ours)]


def _present(kind: type[Callback], callbacks: Sequence[Callback]) -> Callback | None:
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
