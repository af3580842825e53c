"""One job of a cross-validation, in this process: what it leaves, and how it goes on."""

import json
from pathlib import Path

import drawn_sets
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn import metrics as sk

from anomalib_cxr.metrics import read_predictions
from anomalib_cxr.pipelines.cross_validation.job import run_job
from anomalib_cxr.pipelines.cross_validation.plan import plan_jobs

MODELS = {
    "ours": {
        "class_path": "AnatPaste",
        "init_args": {
            "image_size": 64,
            "max_steps": 4,
            "steps_per_epoch": 2,
            "backbone": "resnet10t",
            "num_workers": 0,
        },
    },
    "padim": {
        "class_path": "Padim",
        "init_args": {"backbone": "resnet10t", "pre_trained": False, "layers": ["layer1"], "n_features": 8},
    },
}


def prepared(root: Path, model: str) -> Path:
    drawn_sets.radiograph_table(root / "data")
    arguments = {"root": str(root / "data"), "table": "images.csv", "num_workers": 0, "train_batch_size": 4}
    data = {"own": {"class_path": "RadiographTable", "init_args": arguments}}
    (job,) = plan_jobs(data, {model: MODELS[model]}, [0], 4, [5], {"accelerator": "cpu", "devices": 1})
    folder = root / job.name
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(job.config))
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_a_job_leaves_predictions_pictures_and_weights_and_goes_on_after_its_training(tmp_path, model, caplog) -> None:
    folder = prepared(tmp_path, model)
    run_job(folder)
    assert (folder / "done.json").is_file()
    assert (folder / "weights/lightning/model.ckpt").is_file()
    assert len(list((folder / "images").rglob("*.*"))) == len(read_predictions(folder / "predictions.csv")) > 0
    assert (folder / "last/predictions.csv").is_file() == (model == "ours")
    for place in (folder, folder / "last") if model == "ours" else (folder,):
        measured = json.loads((place / "test_metrics.json").read_text())
        table = read_predictions(place / "predictions.csv")
        expected = sk.roc_auc_score(table["label"] == "abnormal", table["score"])
        assert measured["image_AUROC"] == pytest.approx(expected, abs=1e-6)
    done = json.loads((folder / "done.json").read_text())
    assert 0 < done["image_ms"] < 60_000
    assert 0.1 < done["peak_gib"] < 100
    for path in (*folder.rglob("*.ckpt"), folder / "fitted.json", folder / "run.json"):
        assert str(tmp_path).encode() not in path.read_bytes(), path.name  # archives of torch are not compressed
    moved = tmp_path / "moved"
    folder.rename(moved)
    folder = moved
    names = [path.relative_to(folder) for path in folder.rglob("predictions*.csv")]
    first = {name: read_predictions(folder / name) for name in names}
    for path in (folder / "done.json", *(folder / name for name in names)):
        path.unlink()  # as if the test had been cut off
    caplog.clear()
    with caplog.at_level("INFO"):
        run_job(folder)
    assert "only the test is run" in caplog.text
    for name, table in first.items():
        pd.testing.assert_frame_equal(read_predictions(folder / name), table)


@pytest.mark.parametrize("torn", [["model.ckpt"], ["model.ckpt", "best.ckpt"]], ids=["model", "both"])
def test_a_torn_checkpoint_costs_no_whole_one(tmp_path, torn, caplog) -> None:
    folder = prepared(tmp_path, "ours")
    run_job(folder)
    first = read_predictions(folder / "predictions.csv")
    for name in ("done.json", "fitted.json", "predictions.csv"):
        (folder / name).unlink()
    for name in torn:
        checkpoint = folder / "weights/lightning" / name
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with caplog.at_level("INFO"):
        run_job(folder)
    assert caplog.text.count("It cannot be gone on from") == len(torn)
    resumed = "Going on from step" in caplog.text
    assert resumed == (len(torn) == 1)
    assert (json.loads((folder / "done.json").read_text())["fit_seconds"] is None) == resumed
    pd.testing.assert_frame_equal(read_predictions(folder / "predictions.csv"), first)


def test_anomalibs_own_datamodule_leaves_predictions_too(tmp_path) -> None:
    for label, value in (("normal", 60), ("abnormal", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(12):
            grey = np.random.default_rng(i).integers(value, value + 50, (64, 64), dtype=np.uint8)
            Image.fromarray(grey).save(tmp_path / "data" / label / f"{i}.png")
    arguments = {"name": "own", "root": str(tmp_path / "data"), "normal_dir": "normal", "abnormal_dir": "abnormal"}
    data = {"own": {"class_path": "Folder", "init_args": arguments | {"num_workers": 0, "train_batch_size": 4}}}
    (job,) = plan_jobs(data, {"padim": MODELS["padim"]}, None, 5, [5], {"accelerator": "cpu", "devices": 1})
    folder = tmp_path / job.name
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(job.config))
    run_job(folder)
    test, validation = (read_predictions(folder / name) for name in ("predictions.csv", "predictions_val.csv"))
    assert len(test) > 0
    assert len(validation) > 0
    assert not set(test["image"]) & set(validation["image"])
