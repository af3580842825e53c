"""A tiny drawn data set, so that whole training runs take seconds."""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from anomalib_cxr.data import RadiographDataModule


class TinyRadiographs(RadiographDataModule):
    """Two dark ellipses in a bright frame; abnormal images have a bright spot in the left one."""

    def __init__(self, root: Path, count: int = 12, only_normal_val: bool = False, **kwargs) -> None:
        super().__init__(root=root, train_batch_size=4, eval_batch_size=5, num_workers=0, **kwargs)
        self.count = count
        self.only_normal_val = only_normal_val

    def make_samples(self) -> pd.DataFrame:
        self.root.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[:64, :64] / 64.0
        rows = []
        for split, labels in (("train", ["normal"]), ("val", ["normal", "abnormal"]), ("test", ["normal", "abnormal"])):
            for label in labels:
                for i in range(self.count):
                    name = f"{split}_{label}_{i:03d}"
                    rng = np.random.default_rng(hash_of(name))
                    shift = rng.uniform(-0.02, 0.02)
                    lungs = sum(((x - cx - shift) / 0.14) ** 2 + ((y - 0.5) / 0.3) ** 2 < 1 for cx in (0.3, 0.7))
                    image = 0.75 - 0.5 * (lungs > 0) + rng.normal(0, 0.02, x.shape)
                    if label == "abnormal":
                        cy, cx = rng.uniform(0.4, 0.6), rng.uniform(0.25, 0.35)
                        image += 0.4 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.004)
                    path = self.root / f"{name}.png"
                    Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).save(path)
                    row = {"image_path": str(path), "label": label, "split": split, "patient_id": name}
                    rows.append(row | {"findings": "", "mask_path": ""})
        return pd.DataFrame(rows)


def hash_of(text: str) -> int:
    """Hash that is the same in every process."""
    return zlib.crc32(text.encode())
