"""One run from the fit to the exported files: the same split and the same decisions all along."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from one_trace import one_trace
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.deploy import ExportedDetector, read_metadata
from anomalib_cxr.imaging import read_radiograph
from anomalib_cxr.metrics.predictions import read_predictions
from anomalib_cxr.models import AutoEncoder
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor


class Run(NamedTuple):
    root: Path
    checkpoint: Path
    exported: list[Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("chain")

    def engine() -> Engine:
        return Engine(default_root_dir=root, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)

    def model(post: RankPreservingPostProcessor | bool = True) -> AutoEncoder:
        return AutoEncoder(
            image_size=64, hidden_size=32, max_steps=20, steps_per_epoch=20, learning_rate=3e-3, post_processor=post
        )

    trained = model(RankPreservingPostProcessor(image_sensitivity=0.3, pixel_sensitivity=0.6))
    data, fitting = TinyRadiographs(root / "films"), engine()
    fitting.fit(trained, datamodule=data)
    fitting.test(trained, datamodule=data)
    (checkpoint,) = root.rglob("model.ckpt")
    kinds = (ExportType.ONNX, ExportType.OPENVINO)
    # By models that know nothing yet: all comes from the checkpoint.
    with one_trace():
        exported = [engine().export(model(), kind, export_root=root / "export", ckpt_path=checkpoint) for kind in kinds]
    return Run(root, checkpoint, [Path(path) for path in exported if path])


def test_the_split_of_the_fit_is_in_checkpoint_and_exported_files(run: Run) -> None:
    (table,) = run.root.rglob("predictions.csv")
    (split,) = set(read_predictions(table)["split_hash"])
    assert len(split) == 64
    assert torch.load(run.checkpoint, weights_only=True)["split_sha256"] == split
    assert [read_metadata(path)["split_sha256"] for path in run.exported] == [split, split]


def test_another_sensitivity_goes_all_the_way(run: Run) -> None:
    (table,) = run.root.rglob("predictions.csv")
    rows = read_predictions(table)
    images = [read_radiograph(run.root / "films" / Path(image).name) for image in rows["image"]]
    for path in run.exported:
        detector = ExportedDetector(path, threads=1)
        assert detector.thresholds == pytest.approx((0.7, 0.4))
        found = detector.predict(images)
        scores = np.array([prediction.score for prediction in found])
        np.testing.assert_allclose(scores, rows["score"], atol=1e-4)
        # Both decisions, and some that the threshold of 0.5 would have made otherwise.
        decided = [prediction.abnormal for prediction in found]
        assert decided == (scores > detector.thresholds.image).tolist() == (rows["decision"] == "abnormal").tolist()
        assert decided != (scores > 0.5).tolist()
        assert len(set(decided)) == 2
        for prediction in found:
            np.testing.assert_array_equal(prediction.mask, prediction.heat_map > np.float32(detector.thresholds.pixel))


def test_the_openvino_file_speaks_of_its_own_weights_only(run: Run) -> None:
    onnx, openvino = run.exported
    assert read_metadata(onnx)["weights"]["sha256"] not in openvino.read_text()
    assert openvino.read_text().count("split_sha256") == 1
