"""What an exported file says of its model, and models that must not be exported."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Normalize, Resize

from anomalib_cxr.deploy import ExportedDetector
from anomalib_cxr.models import AnatPaste
from anomalib_cxr.models.components.deployable import DeployableMixin
from anomalib_cxr.models.components.exact_resize import ExactResizePreProcessor
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor

sys.path.append(str(Path(__file__).parents[2] / "deploy"))
import exported_by_hand

NUMBERS = {
    "image_min": 1.0,
    "image_max": 3.0,
    "_image_threshold": 2.5,
    "pixel_min": 0.25,
    "pixel_max": 0.75,
    "_pixel_threshold": 0.5,
}


def model(post: Any = True, pre: Any = True, **numbers: float) -> AnatPaste:
    made = AnatPaste(image_size=64, backbone="resnet10t", pre_trained=False, post_processor=post, pre_processor=pre)
    for name, value in numbers.items():
        getattr(made.post_processor, name).fill_(value)
    return made


def test_ranges_thresholds_and_decisions_are_those_of_the_post_processor() -> None:
    post = RankPreservingPostProcessor(image_sensitivity=0.75, pixel_sensitivity=0.375)
    said = model(post, **NUMBERS).export_metadata()
    assert said["normalisation"] == {"image_min": 1.0, "image_max": 3.0, "pixel_min": 0.25, "pixel_max": 0.75}
    assert said["thresholds"] == {"image": 2.5, "pixel": 0.5}
    assert said["decision"] == {"image": 0.25, "pixel": 0.625}
    assert model(**NUMBERS).export_metadata()["decision"] == {"image": 0.5, "pixel": 0.5}


@pytest.mark.parametrize("unknown", [*NUMBERS, "all"])
def test_a_model_without_its_numbers_is_not_exported(unknown: str, tmp_path: Path) -> None:
    numbers = {name: value for name, value in NUMBERS.items() if unknown not in {name, "all"}}
    named = {
        "_image_threshold": "image threshold",
        "_pixel_threshold": "pixel threshold",
        "all": "image_min, image_max",
    }
    for export in (DeployableMixin.to_onnx, DeployableMixin.to_openvino):
        with pytest.raises(ValueError, match=f"never validated and so has no {named.get(unknown, unknown)}"):
            export(model(**numbers), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_model_that_does_not_decide_is_not_exported() -> None:
    for post in (False, PostProcessor(enable_normalization=False), PostProcessor(enable_thresholding=False)):
        with pytest.raises(ValueError, match="cannot be exported without a post-processor that normalises and decides"):
            model(post).export_metadata()


@pytest.mark.parametrize(
    ("pre", "said"),
    [
        (True, "exact_resize"),
        (ExactResizePreProcessor(Resize((64, 48), antialias=True)), "exact_resize"),
        (ExactResizePreProcessor(Compose([Resize((64, 64)), Normalize([0.5] * 3, [0.5] * 3)])), "Compose( Resize"),
        (ExactResizePreProcessor(CenterCrop((64, 64))), "CenterCrop(size=(64, 64))"),
        (ExactResizePreProcessor(Resize((64, 64), interpolation=InterpolationMode.NEAREST)), "Resize(size=[64, 64]"),
        (ExactResizePreProcessor(Resize((64, 64), antialias=False)), "Resize(size=[64, 64]"),
        (PreProcessor(Resize((64, 64), antialias=True)), "Resize(size=[64, 64]"),  # not antialiased in the graph
        (False, "None"),
    ],
)
def test_pre_processing_is_the_exact_resize_or_said_in_words(pre: Any, said: str) -> None:
    assert model(pre=pre, **NUMBERS).export_metadata()["pre_processing"].startswith(said)


class _TorchWithoutData:
    """In place of Anomalib's export: writes a graph with its weights inside, as torch does for a small model."""

    threshold = 0.5

    def to_onnx(self, export_root: Path, model_file_name: str, *args: Any, **kwargs: Any) -> Path:
        del args, kwargs
        whole = onnx.load(exported_by_hand.write_onnx(export_root / "made", threshold=self.threshold, described={}))
        path = export_root / "weights" / "onnx" / f"{model_file_name}.onnx"
        onnx.save(whole, path)
        return path


class _Small(DeployableMixin, _TorchWithoutData):  # type: ignore[misc]
    device = "meta"

    def __init__(self) -> None:
        self.moved: list[str] = []

    def to(self, device: str) -> None:
        self.moved.append(device)

    def export_metadata(self) -> dict[str, Any]:
        return exported_by_hand.metadata()

    def expected_export_bytes(self) -> tuple[int, int]:
        return 1200, 1200


def test_weights_of_a_former_export_are_not_taken_for_these(tmp_path: Path) -> None:
    stale = tmp_path / "weights" / "onnx" / "model.onnx.data"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(np.full(1000, 0.9, np.float32).tobytes())
    model = _Small()
    path = model.to_onnx(tmp_path)
    assert model.moved == ["cpu", "meta"]  # traced on the CPU, then back
    assert stale.read_bytes().startswith(np.full(300, 0.5, np.float32).tobytes())
    (found,) = ExportedDetector(path).predict([np.full((32, 32), 0.7, np.float32)])
    assert found.abnormal
