"""How a run of the stock command ends: what it came to, where that is, and what to look at."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anomalib_cxr.plugin.wrapping import Wrapping
from anomalib_cxr.run_folder import HEAT_MAP_SHEET, PASTED_SHEET, PREDICTIONS, REGION_SHEET, SHEETS

#: Of many images that could not be read, so many are named on the console.
_NAMED = 10


def last_lines(trainer: Any) -> list[str]:
    """Say what a run came to.

    Args:
        trainer: Trainer after a run.

    Returns:
        Metrics of a fit (Lightning prints those of a test itself) or the number of images predicted, the folder of the
        results, and the picture to look at, where there is one.
    """
    folder = Path(trainer.default_root_dir)
    lines = []
    if trainer.state.fn == "fit":
        metrics = [f"{name} {float(value):.4g}" for name, value in sorted(trainer.callback_metrics.items())]
        lines += [f"Metrics: {', '.join(metrics)}"] if metrics else []
    elif trainer.state.fn == "predict":
        lines += [_count_predictions(trainer, folder)]
    picture = _picture(trainer, folder)
    return [*lines, f"Results: {folder}", *([] if picture is None else [f"Look at: {picture}"])]


def unreadable_lines(unreadable: dict[str, str]) -> list[str]:
    """Say which images could not be read.

    Args:
        unreadable: Reason for each.

    Returns:
        How many, then one line for each of the first.
    """
    if not unreadable:
        return []
    named = [f"  {image}: {reason}" for image, reason in list(unreadable.items())[:_NAMED]]
    more = [f"  and {len(unreadable) - _NAMED} more"] if len(unreadable) > _NAMED else []
    return [f"{len(unreadable)} images could not be read and were left out:", *named, *more]


def _count_predictions(trainer: Any, folder: Path) -> str:
    table = _predictions(folder)
    if table is None:
        from anomalib_cxr.callbacks.pictures import evaluated_datasets

        return f"{sum(map(len, evaluated_datasets(trainer)))} images scored"
    line = f"{len(table)} images scored, {(table['decision'] == 'abnormal').sum()} judged abnormal"
    unfit = int((table["assessable"] == "no").sum())
    return f"{line}, {unfit} not assessable" if (table["assessable"] != "").any() else line


def _picture(trainer: Any, folder: Path) -> Path | None:
    """The sheet of the run, else the picture of the image with the highest score, else any picture of it."""
    from anomalib_cxr.callbacks.pictures import pictures_of

    sheets = {"fit": (PASTED_SHEET, REGION_SHEET), "test": (HEAT_MAP_SHEET,)}.get(str(trainer.state.fn.value), ())
    for name in sheets:
        if (folder / SHEETS / name).is_file():
            return folder / SHEETS / name
    if trainer.state.fn not in {"test", "predict"}:
        return None
    written = list(pictures_of(trainer).written.values())
    table = _predictions(folder)
    if written and table is not None:
        ranked = table.sort_values("raw_score", ascending=False)["picture"]
        written = [folder / picture for picture in ranked if picture] or written
    return written[0] if written else None


def _predictions(folder: Path) -> Any:
    from anomalib_cxr.metrics.predictions import read_predictions

    return read_predictions(folder / PREDICTIONS) if (folder / PREDICTIONS).is_file() else None


def _wrap_run(stock: Callable[..., None]) -> Callable[..., None]:
    """Let a run say at its end what it came to, and leave with status 1 if an image could not be read."""

    @functools.wraps(stock)
    def _run_subcommand(self: Any) -> None:
        stock(self)
        trainer = getattr(getattr(self, "engine", None), "_trainer", None)
        if trainer is None or trainer.state.fn is None or trainer.fast_dev_run:
            return
        from anomalib_cxr.callbacks.unreadable_list import unreadable_of

        unreadable = unreadable_of(trainer)
        if trainer.is_global_zero:
            sys.stdout.flush()
            for line in unreadable_lines(unreadable):
                print(line, file=sys.stderr)
            print(*last_lines(trainer), sep="\n", flush=True)
        if unreadable:
            raise SystemExit(1)

    return _run_subcommand


#: Where the command runs what was asked for.
ENDING = Wrapping([("anomalib.cli.cli", "AnomalibCLI._run_subcommand", _wrap_run)])
