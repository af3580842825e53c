"""Films of one grey each, and a model whose score is that grey: everything a run writes is known beforehand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib import LearningType
from anomalib.data import InferenceBatch
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torchvision.transforms.v2 import Resize

from anomalib_cxr.data import RadiographDataModule

#: Grey levels, out of 255, of each split and label.
GREYS = {
    ("train", "normal"): [10, 11, 12, 13],
    ("val", "normal"): [40, 10, 30, 20],
    ("val", "abnormal"): [35, 50, 60],
    ("test", "normal"): [15, 32, 45],
    ("test", "abnormal"): [33, 70, 250, 240],
}


class GreyFilms(RadiographDataModule):
    """Two films a patient; abnormal ones have findings."""

    def __init__(self, root: Path, greys: dict[tuple[str, str], list[int]] = GREYS, **kwargs: Any) -> None:
        super().__init__(root=root, train_batch_size=4, eval_batch_size=2, num_workers=0, **kwargs)
        self.greys = greys

    def make_samples(self) -> pd.DataFrame:
        rows = []
        for (split, label), greys in self.greys.items():
            (self.root / split).mkdir(parents=True, exist_ok=True)
            for number, grey in enumerate(greys):
                path = self.root / split / f"{label}_{number}.png"
                Image.fromarray(np.full((8, 8), grey, np.uint8)).save(path)
                findings = "" if label == "normal" else "nodule|edema"
                row = {"image_path": str(path), "label": label, "split": split, "findings": findings, "mask_path": ""}
                rows.append(row | {"patient_id": f"{split}-{label}-{number // 2}"})
        return pd.DataFrame(rows)


class Grey(torch.nn.Module):
    """Mean grey in 0 … 255, NaN where it is ``nan_at``."""

    def __init__(self, nan_at: int | None = None) -> None:
        super().__init__()
        self.nan_at = nan_at

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        grey = 255 * images.mean(dim=(1, 2, 3))
        if self.nan_at is not None:
            grey = torch.where((grey - self.nan_at).abs() < 0.5, torch.nan, grey)
        return InferenceBatch(pred_score=grey, anomaly_map=(255 * images[:, :1]))


class GreyModel(AnomalibModule):
    """Nothing to train."""

    def __init__(self, nan_at: int | None = None, visualizer: Any = False, **kwargs: Any) -> None:
        super().__init__(pre_processor=PreProcessor(transform=Resize((8, 8))), visualizer=visualizer, **kwargs)
        self.model = Grey(nan_at)

    def training_step(self, batch: Any, *args: Any) -> torch.Tensor:
        return torch.zeros((), requires_grad=True)

    def validation_step(self, batch: Any, *args: Any) -> Any:
        return batch.update(**self.model(batch.image)._asdict())

    def configure_optimizers(self) -> None:
        return None

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        return {"max_epochs": 1, "num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        return LearningType.ONE_CLASS
