"""Looks before a run whether the findings that its metrics are to measure exist."""

from collections import Counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class FindingsCheck(Callback):
    """Has metrics by finding look at the abnormal images of the table, before anything is trained (ours).

    Raises:
        ValueError: At set-up, if the evaluator has a metric of a finding that no abnormal image of the table has.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the metrics of the model's evaluator; a prediction has none."""
        samples = getattr(getattr(trainer, "datamodule", None), "samples", None)
        metrics: list[Any] = [module for module in pl_module.modules() if hasattr(module, "check_findings")]
        if stage == "predict" or samples is None or not metrics:
            return
        cells = Counter(samples["findings"][samples["label"] == "abnormal"].fillna("").astype(str))
        for metric in metrics:
            metric.check_findings(cells)
