"""The papers' comparisons, each detector cut to its smallest, run whole on films drawn in the sets' own layouts."""

import copy
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import drawn_sets
import pandas as pd
import pytest
import yaml

CONFIGS = Path(__file__).parents[2] / "configs" / "benchmark"
#: What a detector that knows the argument takes.
SMALL = {
    "image_size": 64, "width": 8, "max_steps": 2, "steps_per_epoch": 2, "gan_steps": 1, "num_workers": 0,
    "pre_trained": False, "backbone": "resnet10t", "teacher": "test_efficientnet", "n_features": 4,
}  # fmt: skip
#: What an entry takes besides, by its name: sizes that belong to one another.
OWN: dict[str, dict[str, Any]] = {
    "f_anogan_1": {"image_size": 128},
    "patch_svdd_1": {"image_size": 128},
    "patch_svdd_2": {"image_size": 160},
    "multires_patch_ssl": {"patch_sizes": [16, 32], "weights": [1.0, 1.0], "encoder_size": 16, "feature_dim": 4},
}
DRAWN = {"padchest": drawn_sets.padchest, "chexpert": drawn_sets.chexpert, "rsna": drawn_sets.rsna}


def draw_zhanglab(root: Path) -> Path:
    for part, counts in (("train", (24, 8)), ("test", (6, 6))):
        for label, count in zip(("NORMAL", "PNEUMONIA"), counts, strict=True):
            for index in range(count):
                name = f"IM-{index:04}-0001.jpeg" if label == "NORMAL" else f"person{index}_virus_{index}.jpeg"
                image = drawn_sets.chest(100 * len(part) + index, label == "PNEUMONIA")
                drawn_sets.save(root / part / label / name, image)
    return root


def shortened(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    config = copy.deepcopy(config) | {"results": str(folder / "results"), "seeds": config["seeds"][:1]}
    if config["folds"]:
        config["folds"] = config["folds"][:1]
    for name, entry in config["data"].items():
        root = DRAWN.get(name, draw_zhanglab)(folder / name)
        entry["init_args"] = {"root": str(root), "train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
        if name == "zhanglab":
            entry["init_args"] |= {"val_per_class": 4}
    for name, entry in config["models"].items():
        module, _, class_name = entry["class_path"].rpartition(".")
        detector = getattr(importlib.import_module(module), class_name)
        known = inspect.signature(detector).parameters
        if module.startswith("anomalib_cxr"):
            detector(**entry["init_args"] | ({"pre_trained": False} if "pre_trained" in known else {}))  # as it is
        small = {key: value for key, value in SMALL.items() if key in known} | OWN.get(name, {})
        entry["init_args"] = entry.get("init_args", {}) | small
        entry.pop("data", None)
        if "trainer" in entry:
            entry["trainer"]["max_epochs"] = 1
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kim2023", "anatpaste_table1"])
def test_a_papers_comparison_runs(name: str, tmp_path: Path) -> None:
    config = shortened(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), tmp_path)
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    command = ["anomalib", "cross-validate", "--config", "short.yaml", "--draws", "20"]
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for data in config["data"]:
        for model in config["models"]:
            (table,) = (tmp_path / "results" / data / model).glob("*/predictions.csv")
            scores = pd.read_csv(table, comment="#")["raw_score"]
            assert scores.notna().all()
            assert scores.nunique() > 1
