"""Two finished runs, drawn: what cross-validate leaves of them, with known scores and one colour a picture."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from anomalib_cxr.metrics import write_predictions

HOSTILE = "<script>alert('x')</script>&\"'"
FINDINGS = ("nodule", "effusion|nodule", "edema", f"rare {HOSTILE}")


def predictions(shift: float, seed: int, part: str = "test", normal: int = 30, abnormal: int = 24) -> pd.DataFrame:
    """Scores around 0 for normal and ``shift`` for abnormal images, two images a patient."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(normal + abnormal):
        sick = index >= normal
        score = rng.normal(shift * sick, 1.0)
        rows.append(
            {
                "image": f"{part}/{'abnormal' if sick else 'normal'}/film {index:03}.png",
                "patient_id": f"{part}-{index // 2}",
                "label": "abnormal" if sick else "normal",
                "findings": FINDINGS[(index % 10) // 3] if sick else "",
                "raw_score": score,
                "score": 1 / (1 + np.exp(-score)),
                "p_value": 0.5,
                "decision": "abnormal" if score > 0.7 else "normal",
                "split_hash": "ab" * 32,
            }
        )
    return pd.DataFrame(rows)


def colour(index: int) -> tuple[int, int, int]:
    """Colour of the picture of an image, well apart from others."""
    return (40 * (index % 6), 40 * (index // 6 % 6), 40 * (index // 36 % 6))


def draw_run(
    folder: Path, shift: float, seed: int, model: str = "AnatPaste", pictures: bool = True, **counts: int
) -> Path:
    """Write one run."""
    test = predictions(shift, seed, **counts)
    write_predictions(folder / "predictions.csv", test)
    write_predictions(folder / "predictions_val.csv", predictions(shift, seed + 100, "val", **counts))
    for index, image in enumerate(test["image"] if pictures else ()):
        path = folder / "images" / Path(image).relative_to("test")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 32), colour(index)).save(path)
    config = {
        "model": {"class_path": f"anomalib_cxr.models.{model}"},
        "data": {"class_path": "x.Drawn"},
        "note": HOSTILE,
    }
    (folder / "job.yaml").write_text(f"# digest\n{json.dumps(config)}\n")
    (folder / "done.json").write_text(json.dumps({"fit_seconds": 90.0, "versions": {"torch": "0.0"}}))
    (folder / "log.txt").write_text(
        "noise\n2026 - INFO - Lung masks of 26 images at 128×128 by method 'shape': mean area 28.9% of the image, two "
        "components in 100.0%, 0 touch the border, fallbacks used: none.\nmore\n"
    )
    return folder


def two_runs(root: Path, **counts: int) -> Path:
    """Write a good and a weak run on the same images."""
    draw_run(root / "drawn" / "good" / "seed_0", 2.0, 1, **counts)
    draw_run(root / "drawn" / "weak" / "seed_0", 0.5, 2, "MultiResPatchSSL", **counts)
    return root
