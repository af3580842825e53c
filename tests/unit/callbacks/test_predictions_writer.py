"""What a run writes, against films whose scores are known."""

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from grey_films import GREYS, GreyFilms, GreyModel
from PIL import Image

from anomalib_cxr.callbacks import PredictionsWriter
from anomalib_cxr.metrics import read_predictions


def engine(root: Path, **kwargs) -> Engine:
    return Engine(
        default_root_dir=root,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Folder of a run of `train`: fit and test."""
    root = tmp_path_factory.mktemp("run")
    engine(root / "results").train(GreyModel(), datamodule=GreyFilms(root / "data"))
    return root


def run_folder(root: Path) -> Path:
    return next(root.glob("results/GreyModel/GreyFilms/v0"))


def test_every_column_is_what_it_says(trained) -> None:
    table = read_predictions(run_folder(trained) / "predictions.csv").set_index("image")
    greys = {f"test/{label}_{i}.png": g for (split, label), gs in GREYS.items() if split == "test"
             for i, g in enumerate(gs)}  # fmt: skip
    assert table.index.tolist() == sorted(greys)
    for image, grey in greys.items():
        row = table.loc[image]
        label = "abnormal" if "abnormal" in image else "normal"
        number = int(image[-5])
        assert row["raw_score"] == pytest.approx(grey, abs=1e-4)
        assert (row["label"], row["patient_id"]) == (label, f"test-{label}-{number // 2}")
        assert row["findings"] == ("nodule|edema" if label == "abnormal" else "")
        at_least = sum(normal >= grey for normal in GREYS["val", "normal"])
        assert row["p_value"] == pytest.approx((1 + at_least) / 5)
        # Anomalib: threshold of best F1 on validation is 35, range 10 … 60, clamped.
        assert row["score"] == pytest.approx(np.clip((grey - 35) / 50 + 0.5, 0, 1), abs=1e-5)
        assert row["decision"] == ("abnormal" if grey > 35 else "normal")
    assert table["split_hash"].nunique() == 1
    assert len(table["split_hash"].iloc[0]) == 64


def test_validation_predictions_lie_beside(trained) -> None:
    table = read_predictions(run_folder(trained) / "predictions_val.csv")
    assert table["image"].tolist() == [f"val/abnormal_{i}.png" for i in range(3)] + [
        f"val/normal_{i}.png" for i in range(4)
    ]
    assert table["raw_score"].tolist() == pytest.approx([35, 50, 60, 40, 10, 30, 20], abs=1e-4)
    assert table["score"].tolist() == pytest.approx([0.5, 0.8, 1.0, 0.6, 0.0, 0.4, 0.2], abs=1e-5)
    assert table["p_value"].isna().all()


def test_the_checkpoint_keeps_scores_but_no_names(trained) -> None:
    path = run_folder(trained) / "weights/lightning/model.ckpt"
    kept = torch.load(path, weights_only=True)["callbacks"]["PredictionsWriter"]
    assert kept["raw_scores"] == pytest.approx([35, 50, 60, 40, 10, 30, 20], abs=1e-4)
    content = path.read_bytes()
    assert b"val-normal" not in content
    assert b"normal_0.png" not in content


def test_a_tested_checkpoint_brings_its_p_values(trained, tmp_path) -> None:
    checkpoint = run_folder(trained) / "weights/lightning/model.ckpt"
    engine(tmp_path).test(GreyModel(), datamodule=GreyFilms(trained / "data"), ckpt_path=checkpoint)
    for name in ("predictions.csv", "predictions_val.csv"):
        again = read_predictions(tmp_path / "GreyModel/GreyFilms/latest" / name)
        pd.testing.assert_frame_equal(again, read_predictions(run_folder(trained) / name))


def test_predicting_a_folder_has_p_values_too(trained, tmp_path) -> None:
    engine(tmp_path, callbacks=[PredictionsWriter()]).predict(
        GreyModel(), data_path=trained / "data" / "test", ckpt_path=run_folder(trained) / "weights/lightning/model.ckpt"
    )
    table = read_predictions(next(tmp_path.rglob("predictions.csv")))
    assert len(table) == 7
    assert set(table["label"]) == set(table["patient_id"]) == set(table["split_hash"]) == {""}
    greys = sorted(g for (split, _), gs in GREYS.items() if split == "test" for g in gs)
    assert sorted(table["raw_score"]) == pytest.approx(greys, abs=1e-4)
    normals = GREYS["val", "normal"]
    expected = [(1 + sum(n >= score - 1e-4 for n in normals)) / 5 for score in table["raw_score"]]
    assert table["p_value"].tolist() == pytest.approx(expected)
    assert not list(tmp_path.rglob("predictions_val.csv"))


def test_other_validation_images_leave_no_stale_file(trained, tmp_path) -> None:
    checkpoint = run_folder(trained) / "weights/lightning/model.ckpt"
    stale = tmp_path / "GreyModel/GreyFilms/latest/predictions_val.csv"
    stale.parent.mkdir(parents=True)
    stale.write_text("of another model")
    other = GreyFilms(tmp_path / "data", GREYS | {("val", "normal"): [1, 2]})
    engine(tmp_path).test(GreyModel(), datamodule=other, ckpt_path=checkpoint)
    assert not stale.exists()
    first = read_predictions(run_folder(trained) / "predictions.csv")
    again = read_predictions(stale.with_name("predictions.csv"))
    assert again["p_value"].tolist() == first["p_value"].tolist()  # the checkpoint's, not those of this datamodule
    assert again["split_hash"].iloc[0] != first["split_hash"].iloc[0]


def test_normal_images_that_are_tested_too_calibrate_nothing(tmp_path, caplog) -> None:
    for label, greys in (("normal", range(10, 20)), ("abnormal", (60, 70))):
        (tmp_path / label).mkdir()
        for grey in greys:
            Image.fromarray(np.full((8, 8), grey, np.uint8)).save(tmp_path / label / f"{grey}.png")
    data = Folder(
        "films", "normal", tmp_path, "abnormal", num_workers=0, train_batch_size=4, val_split_mode="same_as_test"
    )
    with caplog.at_level(logging.WARNING):
        engine(tmp_path / "run", callbacks=[PredictionsWriter()]).train(GreyModel(), datamodule=data)
    assert re.search(r"No p-values: \d of the normal validation images are predicted here too", caplog.text)
    assert read_predictions(next((tmp_path / "run").rglob("predictions.csv")))["p_value"].isna().all()


def test_without_validation_p_values_are_empty_with_a_reason(trained, tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        engine(tmp_path).test(GreyModel(), datamodule=GreyFilms(trained / "data"))
    assert "No p-values: neither this run nor the checkpoint" in caplog.text
    assert read_predictions(next(tmp_path.rglob("predictions.csv")))["p_value"].isna().all()


def test_without_post_processor_there_are_raw_scores_alone(trained, tmp_path) -> None:
    model = GreyModel(post_processor=False, evaluator=False)
    engine(tmp_path).train(model, datamodule=GreyFilms(trained / "data"))
    table = read_predictions(next(tmp_path.rglob("predictions.csv")))
    assert table["score"].isna().all()
    assert set(table["decision"]) == {""}
    first = read_predictions(run_folder(trained) / "predictions.csv")
    assert table["raw_score"].tolist() == first["raw_score"].tolist()


def test_nan_scores_end_the_run_and_the_images_are_named(trained, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"raw scores are NaN or infinite, at the images .*test/normal_1\.png: "):
        engine(tmp_path).train(GreyModel(nan_at=32), datamodule=GreyFilms(trained / "data"))
    assert not list(tmp_path.rglob("predictions.csv"))


def test_nan_scores_in_validation_make_no_p_values(trained, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"normal validation images are NaN or infinite, at the images .*val/normal_3\.png: "
    ):
        engine(tmp_path).train(GreyModel(nan_at=20), datamodule=GreyFilms(trained / "data"))


def test_it_is_attached_once_and_first(trained, tmp_path) -> None:
    mine = PredictionsWriter()
    for callbacks, expected in (([], None), ([mine], mine)):
        runner = engine(tmp_path, callbacks=callbacks)
        datamodule = GreyFilms(trained / "data")
        model = GreyModel()
        runner.fit(model, datamodule=datamodule)
        runner.test(model, datamodule=datamodule)
        runner.predict(model, datamodule=datamodule)
        writers = [callback for callback in runner.trainer.callbacks if isinstance(callback, PredictionsWriter)]
        assert len(writers) == 1
        assert expected is None or writers[0] is mine


def test_validate_writes_its_own_file(trained, tmp_path) -> None:
    engine(tmp_path).validate(GreyModel(), datamodule=GreyFilms(trained / "data"))
    table = read_predictions(tmp_path / "predictions_val.csv")
    assert table["score"].tolist() == pytest.approx([0.5, 0.8, 1.0, 0.6, 0.0, 0.4, 0.2], abs=1e-5)


def test_a_dry_run_writes_nothing(trained, tmp_path) -> None:
    engine(tmp_path, fast_dev_run=True).train(GreyModel(), datamodule=GreyFilms(trained / "data"))
    assert not list(tmp_path.rglob("*.csv"))


def test_the_split_hash_is_of_the_split(tmp_path) -> None:
    one, same = GreyFilms(tmp_path / "a"), GreyFilms(tmp_path / "b")
    other = GreyFilms(tmp_path / "c", GREYS | {("val", "normal"): [40, 10, 30]})
    assert one.split_hash == same.split_hash  # another root, the same rows
    assert one.split_hash != other.split_hash
