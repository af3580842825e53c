"""Each thing that can be wrong with an exported model gives one clear error, before a runtime sees the file."""

import contextlib
import json
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported_by_hand import metadata, write_onnx

from anomalib_cxr.deploy import ExportedDetector, ExportedModelError, read_metadata
from anomalib_cxr.deploy.metadata import KEY


def test_metadata_comes_back_as_written(onnx_model: Path, openvino_model: Path) -> None:
    # Read by the libraries of the formats, not by our own parser.
    in_onnx = {p.key: p.value for p in onnx.load(onnx_model, load_external_data=False).metadata_props}
    assert read_metadata(onnx_model) == json.loads(in_onnx[KEY])
    import openvino

    in_openvino = openvino.Core().read_model(str(openvino_model)).get_rt_info([KEY]).astype(str)
    assert read_metadata(openvino_model) == json.loads(in_openvino)
    assert read_metadata(openvino_model)["weights"]["file"] == "model.bin"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pkl"])
def test_pickles_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ExportedModelError, match="is a pickle, which can run any code"):
        read_metadata(tmp_path / f"model{suffix}")


def test_pickles_are_refused_by_content_and_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "a.onnx").write_bytes(pickle.dumps(Trap()))
    with zipfile.ZipFile(tmp_path / "b.onnx", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Trap()))
    for name in ("a.onnx", "b.onnx"):
        with pytest.raises(ExportedModelError, match="is a pickle"):
            ExportedDetector(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_missing_folder_and_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"abc")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("hello, this is no model at all")
    (tmp_path / "text.xml").write_text("<html><p>not found</p></html>")
    (tmp_path / "half.xml").write_text('<?xml version="1.0"?><net name="x"><layers><lay')
    for name, message in (
        ("none.onnx", "is no file: give the .onnx or .xml"),
        (".", "is no file"),
        ("model.bin", "is neither .onnx nor .xml"),
        ("empty.onnx", r"is broken or cut short \(it is empty\)"),
        ("text.onnx", "is broken or cut short|lacks our metadata"),
        ("text.xml", "was not exported from a model of anomalib-cxr"),
        ("half.xml", "is broken or cut short"),
    ):
        with pytest.raises(ExportedModelError, match=message):
            read_metadata(tmp_path / name)


def test_model_of_others_is_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path, described={})
    with pytest.raises(ExportedModelError, match="was not exported from a model of anomalib-cxr"):
        read_metadata(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"package_version": "9.1.0"}, r"exported by anomalib-cxr 9\.1\.0, this is"),
        ({"format": 99}, "install that version, or export the model again"),
        ({"thresholds": None}, r"damaged \(thresholds\)"),
        ({"input_size": []}, "states no input size"),
        ({"outputs": ["pred_score", "colour"]}, r"lacks the outputs \['colour'\]"),
        ({"weights": {"file": "../../etc/passwd"}}, "needs its weights beside it under the name passwd"),
        ({"weights": {}}, r"under the name \(not stated\)"),
        ({"weights": {"file": "model.onnx", "bytes": 1}}, "needs its weights beside it"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ExportedModelError, match=message):
        ExportedDetector(write_onnx(tmp_path, described=metadata(**changes)))


@pytest.mark.parametrize("kind", ["onnx_model", "openvino_model"])
def test_weights_missing_cut_short_or_of_another_export(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    weights = path.with_name(read_metadata(path)["weights"]["file"])
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ExportedModelError, match="was changed, or belongs to another export"):
        ExportedDetector(path)
    weights.write_bytes(content[:-4])
    with pytest.raises(ExportedModelError, match=rf"has {len(content) - 4} bytes where .* states {len(content)}"):
        ExportedDetector(path)
    weights.unlink()
    with pytest.raises(ExportedModelError, match=f"needs its weights beside it under the name {weights.name}"):
        ExportedDetector(path)
    weights.write_bytes(content)
    assert ExportedDetector(path).predict([np.full((40, 40), 0.7, np.float32)])[0].abnormal


@pytest.mark.parametrize("kind", ["onnx_model", "openvino_model"])
def test_every_cut_and_any_damage_is_one_clear_error(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ExportedModelError):
            read_metadata(path)
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(ExportedModelError):
            read_metadata(path)


def test_graph_damaged_behind_good_metadata_is_refused_by_name(onnx_model: Path) -> None:
    model = onnx.load(onnx_model, load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, onnx_model)
    with pytest.raises(ExportedModelError, match=r"onnxruntime refuses .*model\.onnx: .*NoSuchOperator"):
        ExportedDetector(onnx_model)


def test_runtime_must_take_the_format(openvino_model: Path, onnx_model: Path) -> None:
    with pytest.raises(ExportedModelError, match=r"ONNX Runtime takes \.onnx files only"):
        ExportedDetector(openvino_model, runtime="onnxruntime")
    with pytest.raises(ExportedModelError, match="computes in f32 only"):
        ExportedDetector(onnx_model, precision="default")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ExportedDetector(onnx_model, batch_size=0)


def test_renamed_model_still_finds_its_weights(onnx_model: Path) -> None:
    copy = onnx_model.with_name("chest.onnx")
    shutil.copy(onnx_model, copy)
    assert ExportedDetector(copy).metadata["model"] == "MeanBrightness"
