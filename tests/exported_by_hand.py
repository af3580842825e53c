"""A tiny exported detector built by hand: its score is the mean of the image, its map the image."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from anomalib_cxr import __version__
from anomalib_cxr.deploy.metadata import FORMAT, KEY, UNSEALED, describe_weights, seal

SIDE = 32
THRESHOLD = 0.5


def metadata(**changes: object) -> dict:
    plain = {
        "format": FORMAT,
        "package_version": __version__,
        "model": "MeanBrightness",
        "config": {},
        "input_size": [SIDE, SIDE],
        "pre_processing": "exact_resize",
        "outputs": ["pred_score", "pred_label", "anomaly_map", "pred_mask"],
        "normalisation": {"image_min": 0.0, "image_max": 1.0, "pixel_min": 0.0, "pixel_max": 1.0},
        "thresholds": {"image": 0.5, "pixel": 0.5},
        "decision": {"image": 0.5, "pixel": 0.5},
        "banks": {},
        "split_sha256": None,
        "compression": None,
    }
    return plain | changes


def write_onnx(
    folder: Path,
    size: tuple[int | str, int | str] = ("h", "w"),
    described: dict | None = None,
    threshold: float = THRESHOLD,
) -> Path:
    """Write ``model.onnx`` and ``model.onnx.data``; the one weight, in the side file, is the threshold.

    The score is the mean times one, where one is the mean by itself: NaN for a black image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    axes = ["b", 3, *size]
    one = ["b", 1, *size]
    thresholds = numpy_helper.from_array(np.full(300, threshold, np.float32), "thresholds")
    first = numpy_helper.from_array(np.array(0), "first")
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input", "channel"], ["anomaly_map"], keepdims=1),
            helper.make_node("ReduceMean", ["input", "all"], ["mean"], keepdims=0),
            helper.make_node("Div", ["mean", "mean"], ["one"]),
            helper.make_node("Mul", ["mean", "one"], ["pred_score"]),
            helper.make_node("Gather", ["thresholds", "first"], ["threshold"]),
            helper.make_node("Greater", ["pred_score", "threshold"], ["pred_label"]),
            helper.make_node("Greater", ["anomaly_map", "threshold"], ["pred_mask"]),
        ],
        "mean",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, axes)],
        [
            helper.make_tensor_value_info("pred_score", TensorProto.FLOAT, ["b"]),
            helper.make_tensor_value_info("pred_label", TensorProto.BOOL, ["b"]),
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, one),
            helper.make_tensor_value_info("pred_mask", TensorProto.BOOL, one),
        ],
        [
            thresholds,
            first,
            numpy_helper.from_array(np.array([1]), "channel"),
            numpy_helper.from_array(np.array([1, 2, 3]), "all"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=1000)
    model = onnx.load(path, load_external_data=False)
    content = {"weights": describe_weights(folder / "model.onnx.data"), "file_sha256": UNSEALED} | (
        metadata() if described is None else described
    )
    if content.get("model"):
        helper.set_model_props(model, {"other": "x" * 300, KEY: json.dumps(content)})
    onnx.save(model, path)
    if content.get("model"):
        seal(path)
    return path


def seal_again(path: Path) -> None:
    """Make a file that was changed look untouched."""
    old = re.search(rb'file_sha256": "([0-9a-f]{64})', path.read_bytes())
    assert old is not None
    path.write_bytes(path.read_bytes().replace(old[1], UNSEALED.encode()))
    seal(path)


def write_openvino(folder: Path) -> Path:
    """The same as ``model.xml`` and ``model.bin``."""
    import openvino

    from anomalib_cxr.models.components.deployable import _describe_openvino

    path = folder / "model.xml"
    openvino.save_model(openvino.convert_model(write_onnx(folder / "onnx")), path, compress_to_fp16=False)
    _describe_openvino(path, metadata())
    return path
