"""A new detector of sixty lines goes the whole way, with no other file touched: train, test, report, join, export."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from anomalib.cli import AnomalibCLI
from tiny_radiographs import TinyRadiographs
from toy_detector import ToyDetector

from anomalib_cxr.models import Ensemble
from anomalib_cxr.pipelines.report.evaluation import Bootstrap
from anomalib_cxr.pipelines.report.pipeline import make_report

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run by the stock command."""
    root = tmp_path_factory.mktemp("toy")
    train(root, "0")
    (folder,) = root.glob("0/ToyDetector/*/latest")
    return folder.resolve()


def train(root: Path, seed: str) -> None:
    words = ["train", "--model", "toy_detector.ToyDetector", f"--model.seed={seed}", "--model.code=6"]
    words += ["--data", "tiny_radiographs.TinyRadiographs", f"--data.root={root / 'films'}"]
    AnomalibCLI([*words, f"--default_root_dir={root / seed}", *QUIET])


def images(films: Path) -> torch.Tensor:
    data = TinyRadiographs(films)
    data.setup()
    return torch.stack([data.test_data[number].image for number in range(len(data.test_data))])


def test_it_trains_and_leaves_what_every_run_leaves(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["model"]["class_path"] == "toy_detector.ToyDetector"
    assert record["model"]["init_args"]["code"] == 6
    assert record["step"] == 4 or record["step"] == 2
    checkpoint = run / "weights" / "lightning" / "model.ckpt"
    model = ToyDetector.load_from_checkpoint(checkpoint).eval()
    with torch.no_grad():
        raw = model.model(model.pre_processor.transform(images(run.parents[3] / "films"))).pred_score
    table = pd.read_csv(run / "predictions.csv")
    assert len(table) == len(raw) == 24
    np.testing.assert_allclose(table["raw_score"], raw, rtol=1e-5)
    assert (run / "sheets" / "heat_maps.png").is_file()


def test_it_is_reported(run: Path, tmp_path: Path) -> None:
    make_report([run.parents[2]], tmp_path / "report.html", bootstrap=Bootstrap(draws=20))
    text = (tmp_path / "report.html").read_text()
    assert "ToyDetector" in text
    assert "Grad-CAM" not in text


def test_it_is_joined_in_an_ensemble_without_being_named(run: Path) -> None:
    root = run.parents[3]
    train(root, "1")
    (other,) = root.glob("1/ToyDetector/*/latest/weights/lightning/model.ckpt")
    paths = [run / "weights" / "lightning" / "model.ckpt", other]
    ensemble = Ensemble([str(path) for path in paths]).eval()
    films = images(root / "films")
    alone = []
    for path in paths:
        member = ToyDetector.load_from_checkpoint(path).eval()
        with torch.no_grad():
            alone.append(member(films).pred_score.flatten())
    with torch.no_grad():
        torch.testing.assert_close(ensemble.model(films).pred_score, (alone[0] + alone[1]) / 2)


def test_it_is_exported_with_its_own_numbers(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "weights" / "lightning" / "model.ckpt"
    words = ["export", "--model", "toy_detector.ToyDetector", f"--ckpt_path={checkpoint}", "--export_type=onnx"]
    AnomalibCLI([*words, f"--export_root={tmp_path}", f"--default_root_dir={tmp_path}"])
    session = onnxruntime.InferenceSession(tmp_path / "weights" / "onnx" / "model.onnx")
    films = images(run.parents[3] / "films")
    names = [one.name for one in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"input": films.numpy()}), strict=True))
    with torch.no_grad():
        expected = ToyDetector.load_from_checkpoint(checkpoint).eval()(films)
    np.testing.assert_allclose(found["pred_score"].reshape(-1), expected.pred_score.reshape(-1), atol=1e-4)
    np.testing.assert_allclose(found["anomaly_map"], expected.anomaly_map, atol=1e-4)
