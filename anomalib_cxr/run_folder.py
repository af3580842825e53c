"""Names of what a run leaves in its folder, each in one place: writers and readers of runs live in different rooms."""

from pathlib import Path

PREDICTIONS = "predictions.csv"
"""Of a test or predict run, beside the run's pictures."""
UNREADABLE = "unreadable.csv"
"""Images that a prediction left out, each with the reason."""
VALIDATION_PREDICTIONS = "predictions_val.csv"
"""The same model's predictions of its validation images, which thresholds are chosen on."""
RECORD = "run.json"
"""What the run was, beside its predictions."""
PICTURES = "images"
"""Folder of Anomalib's pictures of single images."""

WEIGHTS = "weights"
"""Folder of checkpoints and exported models."""
CHECKPOINTS = Path(WEIGHTS) / "lightning"
"""Where Anomalib's Engine keeps checkpoints."""
MODEL_CHECKPOINT = "model.ckpt"
"""Anomalib's: of the weights that the run is tested with."""
BEST_CHECKPOINT, LAST_CHECKPOINT = "best.ckpt", "last.ckpt"
"""Ours, beside it: of the highest validation AUROC so far; of the last step, to resume from."""

SHEETS = "sheets"
"""Folder of contact sheets."""
HEAT_MAP_SHEET, REGION_SHEET, PASTED_SHEET = "heat_maps.png", "region.png", "pasted.png"
OLD_REGION_SHEET = "lungs.png"
"""Name of the second in runs before regions were other than lungs."""

CONFIG, FITTED, METRICS, DONE, LOG = "job.yaml", "fitted.json", "test_metrics.json", "done.json", "log.txt"
"""Files of a job of a cross-validation, in the order of their coming."""
STOCK_CONFIG = "config.yaml"
"""Configuration that Anomalib's command line leaves."""
RUN_FOLDER: tuple[str | Path, ...] = (
    STOCK_CONFIG, PICTURES, SHEETS, WEIGHTS, CHECKPOINTS, CHECKPOINTS / MODEL_CHECKPOINT,
    CHECKPOINTS / BEST_CHECKPOINT, CHECKPOINTS / LAST_CHECKPOINT,
)  # fmt: skip
"""What others write for a run, or we in several files: a folder before what is in it."""
LAST_FOLDER = "last"
"""Folder in a job's of the predictions by the last weights, where the model chose earlier ones."""

SUBMISSION = "submission.json"
"""What a job is called in a cluster's queue, and how often it was sent there."""
LEASES = "leases"
"""Folder in a job's that says who has worked, or works, on it."""

JOB_FOLDER = (
    CONFIG, FITTED, METRICS, DONE, PREDICTIONS, VALIDATION_PREDICTIONS, RECORD, PICTURES, WEIGHTS, SHEETS, LAST_FOLDER,
    LOG, SUBMISSION,
)  # fmt: skip
"""Everything that a job leaves in its folder, but for its leases."""
