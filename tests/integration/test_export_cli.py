"""From a checkpoint to a table of scores, by the commands that the README gives, each in a process of its own."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from anomalib.engine import Engine
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.deploy import read_metadata
from anomalib_cxr.models import AnatPaste

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoint, and a folder of images."""
    root = tmp_path_factory.mktemp("trained")
    model = AnatPaste(image_size=64, max_steps=2, steps_per_epoch=2, num_workers=0, backbone="resnet10t")
    engine = Engine(default_root_dir=root, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    engine.fit(model, datamodule=TinyRadiographs(root / "films"))
    (checkpoint,) = root.rglob("model.ckpt")
    return checkpoint, root / "films"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch"])
def test_export_and_infer(trained: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    checkpoint, films = trained
    command = [str(Path(sys.executable).with_name("anomalib")), "export", "--model", "AnatPaste"]
    command += ["--export_type", kind, "--ckpt_path", str(checkpoint), "--export_root", str(tmp_path)]
    done = run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    suffix = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt"}[kind]
    path = tmp_path / "weights" / kind / f"model{suffix}"
    infer = [sys.executable, "-m", "anomalib_cxr.deploy", str(path), str(films), "-o", str(tmp_path / "out")]
    if kind == "torch":
        assert "A torch export is a pickle" in said
        refused = run(*infer)
        assert refused.returncode == 2
        assert "is a pickle, which can run any code" in refused.stderr
        return
    assert "The exported file will take about" in said
    assert len(said.splitlines()) < 40, said
    assert "model.ckpt" in str(checkpoint)
    assert read_metadata(path)["config"]["backbone"] == "resnet10t"
    inferred = run(*infer, "--batch-size", "4", "--pictures")
    assert inferred.returncode == 0, inferred.stderr[-3000:]
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(films.glob("*.png"))) == 60
    model = AnatPaste.load_from_checkpoint(checkpoint).eval()
    from anomalib.data.utils import read_image

    images = torch.stack([read_image(films / row["image"], as_tensor=True) for row in rows])
    with torch.no_grad():
        expected = model.post_processor(model.model(model.pre_processor.transform(images))).pred_score
    torch.testing.assert_close(torch.tensor([float(row["score"]) for row in rows]), expected, rtol=0, atol=1e-4)
