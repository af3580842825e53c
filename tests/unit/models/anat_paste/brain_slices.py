"""Drawn brain slices: a bright skull, dark fluid, and a brain that skull-stripping by thresholds finds exactly."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import label

SIDE = 64
SPLITS = {"train": ("normal",), "val": ("normal", "abnormal"), "test": ("normal", "abnormal")}


def draw(folder: Path) -> dict[str, np.ndarray]:
    """Draw 12 slices into ``<split>/<label>``, their masks into ``brains/<split>/<label>``, and list them in tables.

    Returns:
        Where the brain was drawn, by the path of the slice; (64, 64) bool.
    """
    brains = {}
    y, x = np.mgrid[:SIDE, :SIDE]
    rows = []
    for split, labels in SPLITS.items():
        for kind in labels:
            for number in range(4 if split == "train" else 2):
                rng = np.random.default_rng(len(brains))
                cy, cx = rng.uniform(28, 36, 2)
                radius = np.hypot((y - cy) / rng.uniform(20, 25), (x - cx) / rng.uniform(16, 20))
                brain = radius < 0.8
                film = np.select(
                    [brain, (radius > 0.95) & (radius < 1.1)], [rng.uniform(110, 150, brain.shape), 230], 15
                )
                name = f"{split}/{kind}/{number}.png"
                for below, pixels in (("", film), ("brains/", brain * 255)):
                    path = folder / below / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels.astype(np.uint8)).save(path)
                brains[str(folder / name)] = brain
                rows.append({"image_path": name, "label": kind, "split": split, "region_path": f"brains/{name}"})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "with_brains.csv", index=False)
    table.drop(columns="region_path").to_csv(folder / "slices.csv", index=False)
    return brains


def skull_stripped(image: np.ndarray, darkest: float = 0.3, brightest: float = 0.8) -> np.ndarray:
    """The largest piece that is neither as dark as fluid nor as bright as bone."""
    pieces, _ = label((image > darkest) & (image < brightest))
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()


class SkullStripped:
    """The same with a threshold of one's own."""

    def __init__(self, darkest: float) -> None:
        self.darkest = darkest

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return skull_stripped(image, self.darkest)
