"""Predictions of several processes, and of a model that ends with an earlier checkpoint."""

from pathlib import Path

import drawn_sets
import numpy as np
import pandas as pd
import pytest
from anomalib.engine import Engine
from PIL import Image
from tiny_radiographs import TinyRadiographs
from warm_python import run_python

from anomalib_cxr.metrics import read_predictions
from anomalib_cxr.models import AnatPaste

CALLBACK_TESTS = Path(__file__).parents[1] / "unit" / "callbacks"

TEST_IN_TWO = """
import sys
from pathlib import Path
from anomalib.engine import Engine
from grey_films import GreyFilms, GreyModel

root = Path(sys.argv[1])
for devices in (2, 1):
    for run in ("validate", "test"):
        engine = Engine(default_root_dir=root / f"{run}_on_{devices}", accelerator="cpu", devices=devices,
                        enable_progress_bar=False, strategy="ddp_fork" if devices > 1 else "auto")
        getattr(engine, run)(GreyModel(), datamodule=GreyFilms(root / "data"))
"""


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    done = run_python(["-c", TEST_IN_TWO, str(tmp_path)], Path.cwd(), 300, PYTHONPATH=str(CALLBACK_TESTS))
    assert done.returncode == 0, done.stderr[-3000:]
    for run, name in (("test", "predictions.csv"), ("validate", "predictions_val.csv")):
        one, two = (next((tmp_path / f"{run}_on_{devices}").rglob(name)) for devices in (1, 2))
        assert len(read_predictions(one)) == 7  # an odd number: DistributedSampler repeats one
        columns = ["image", "label", "patient_id", "findings", "raw_score", "split_hash"]
        pd.testing.assert_frame_equal(read_predictions(two)[columns], read_predictions(one)[columns])


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run whose first validation is the best, and not the last."""
    root = tmp_path_factory.mktemp("chosen")
    data = TinyRadiographs(root / "data")
    small = {"image_size": 64, "max_steps": 6, "steps_per_epoch": 2, "num_workers": 0, "backbone": "resnet10t"}
    model = AnatPaste(**small, optimizer="sgd")  # Nesterov's momentum, with which the first is the best here
    engine = Engine(default_root_dir=root / "run", accelerator="cpu", devices=1, enable_progress_bar=False)
    engine.fit(model, datamodule=data)
    assert model._choice.best_step == 2
    engine.test(model, datamodule=data)
    return next((root / "run").glob("AnatPaste/TinyRadiographs/v0"))


def test_predicting_a_folder_of_dicom_and_16_bit_files(chosen: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    source = chosen.parents[3] / "data"
    films = tmp_path / "films"
    films.mkdir()
    for label in ("normal", "abnormal"):
        grey = np.asarray(Image.open(source / f"test_{label}_000.png"))
        Image.fromarray(grey).save(films / f"{label}_8.png")
        # As a 12-bit camera writes it; stock Anomalib would read white.
        deep = np.round(grey.astype(float) * 4095 / 255).astype(np.uint16)
        Image.fromarray(deep).save(films / f"{label}_16.png")
        drawn_sets.save_dicom(films / f"{label}.dcm", deep, bits=12)
    engine = Engine(default_root_dir=tmp_path / "run", accelerator="cpu", devices=1, enable_progress_bar=False)
    engine.predict(
        AnatPaste(image_size=64, backbone="resnet10t"),
        data_path=films,
        ckpt_path=chosen / "weights/lightning/model.ckpt",
    )
    table = read_predictions(next((tmp_path / "run").rglob("predictions.csv")))
    scores = {Path(image).name: score for image, score in zip(table["image"], table["raw_score"], strict=True)}
    assert len(scores) == 6
    between_labels = abs(scores["abnormal_8.png"] - scores["normal_8.png"])
    for label in ("normal", "abnormal"):
        for name in (f"{label}_16.png", f"{label}.dcm"):
            assert scores[name] == pytest.approx(scores[f"{label}_8.png"], abs=0.1 * between_labels)
    assert table["p_value"].between(0, 1).all()
    pictures = {
        path.name: np.asarray(Image.open(path).convert("L"), float) for path in (tmp_path / "run").rglob("*.png")
    }
    for label in ("normal", "abnormal"):
        for name in (f"{label}_16.png", f"{label}.dcm.png"):
            assert np.abs(pictures[name] - pictures[f"{label}_8.png"]).mean() < 3, "the film, not a white square"


def test_validation_predictions_are_of_the_chosen_weights(chosen: Path, tmp_path: Path) -> None:
    weights = chosen / "weights" / "lightning"
    data = TinyRadiographs(chosen.parents[3] / "data")
    scored = {}
    for name in ("model", "last"):
        engine = Engine(default_root_dir=tmp_path / name, accelerator="cpu", devices=1, enable_progress_bar=False)
        engine.validate(AnatPaste.load_from_checkpoint(weights / f"{name}.ckpt"), datamodule=data)
        scored[name] = read_predictions(tmp_path / name / "predictions_val.csv")["raw_score"].to_numpy()
    written = read_predictions(chosen / "predictions_val.csv")["raw_score"].to_numpy()
    assert written == pytest.approx(scored["model"], abs=1e-6)
    assert written != pytest.approx(scored["last"], abs=1e-6)
