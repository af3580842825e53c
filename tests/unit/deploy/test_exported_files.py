"""Each thing that can be wrong with an exported model gives one clear error, before a runtime sees the file."""

import hashlib
import json
import pickle
import random
import re
import shutil
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from exported_by_hand import metadata, seal_again, write_onnx

from anomalib_cxr.deploy import ExportedDetector, ExportedModelError, read_metadata
from anomalib_cxr.deploy.metadata import KEY, seal


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
        ({"package_version": "9.1.0"}, r"exported by anomalib-cxr 9\.1\.0 \(metadata format 2\), this is"),
        ({"format": 99}, r"\(metadata format 99\), .* install that version, or export the model again"),
        ({"thresholds": None}, r"damaged or incomplete \(thresholds\)"),
        ({"thresholds": {"image": 0.4, "pixel": None}}, r"states no finite thresholds\.pixel: validate the model"),
        ({"thresholds": {"image": float("nan"), "pixel": 0.1}}, r"states no finite thresholds\.image"),
        ({"normalisation": {"image_min": 0.0}}, r"normalisation\.image_max, normalisation\.pixel_min"),
        ({"decision": {"image": 0.5}}, r"states no finite decision\.pixel"),
        ({"decision": {"image": 1.5, "pixel": 0.5}}, "sensitivities from 0 to 1"),
        ({"input_size": []}, "states no input size"),
        ({"pre_processing": "CenterCrop(size=[32, 32])"}, r"with the pre-processing CenterCrop\(size=\[32, 32\]\)"),
        ({"outputs": ["pred_score", "colour"]}, r"states the outputs \['pred_score', 'colour'\], not \['pred_score'"),
        ({"outputs": [["a"]]}, r"states the outputs \[\['a'\]\], not"),
        ({"outputs": []}, r"states the outputs \[\], not"),
        ({"outputs": ["pred_score", "pred_label", "anomaly_map", "pred_mask", "pred_mask"]}, "states the outputs"),
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
        for place in rng.sample(range(len(damaged)), rng.randint(1, 8)):
            damaged[place] ^= rng.randint(1, 255)
        path.write_bytes(bytes(damaged))
        with pytest.raises(ExportedModelError):
            read_metadata(path)


def test_the_seal_is_the_hash_of_the_file_without_it(onnx_model: Path, openvino_model: Path) -> None:
    for path in (onnx_model, openvino_model):
        content = path.read_bytes()
        (stated,) = re.findall(rb"[0-9a-f]{64}", re.split(rb"file_sha256", content)[1])
        assert content.count(stated) == 1
        assert hashlib.sha256(content.replace(stated, b"0" * 64)).hexdigest() == stated.decode()
        with pytest.raises(ValueError, match="exactly once, and holds it 0x"):
            seal(path)


def test_a_graph_that_decides_otherwise_is_refused(onnx_model: Path, openvino_model: Path) -> None:
    model = onnx.load(onnx_model, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Greater":
            node.op_type = "Less"
    onnx.save(model, onnx_model)
    tree = ElementTree.parse(openvino_model)
    for layer in tree.iter("layer"):
        if layer.get("type") == "Greater":
            layer.set("type", "Less")
    tree.write(openvino_model, encoding="utf-8", xml_declaration=True)
    for path in (onnx_model, openvino_model):
        with pytest.raises(ExportedModelError, match="was changed since its export"):
            ExportedDetector(path)
    seal_again(onnx_model)  # the change would have mattered
    assert not ExportedDetector(onnx_model).predict([np.full((40, 40), 0.7, np.float32)])[0].abnormal


def test_metadata_changed_in_place_is_refused(onnx_model: Path) -> None:
    content = onnx_model.read_bytes()
    onnx_model.write_bytes(content.replace(b'"decision": {"image": 0.5', b'"decision": {"image": 0.6'))
    with pytest.raises(ExportedModelError, match="was changed since its export"):
        read_metadata(onnx_model)


def test_graph_damaged_before_it_was_sealed_is_refused_by_name(onnx_model: Path) -> None:
    model = onnx.load(onnx_model, load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, onnx_model)
    seal_again(onnx_model)
    with pytest.raises(ExportedModelError, match=r"onnxruntime refuses .*model\.onnx: .*NoSuchOperator"):
        ExportedDetector(onnx_model)


def test_graph_without_a_decision_is_refused(onnx_model: Path) -> None:
    model = onnx.load(onnx_model, load_external_data=False)
    model.graph.output.pop()
    onnx.save(model, onnx_model)
    seal_again(onnx_model)
    with pytest.raises(ExportedModelError, match=r"lacks the outputs \['pred_mask'\]"):
        ExportedDetector(onnx_model)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(24, 40), (32, 40), ("h", 40), (24, "w")])
def test_graph_of_another_fixed_size_is_refused(tmp_path: Path, runtime: str, size: tuple) -> None:
    path = write_onnx(tmp_path, size=size)
    with pytest.raises(ExportedModelError, match=r"only, where its metadata states \[32, 32\]"):
        ExportedDetector(path, runtime=runtime)


@pytest.mark.parametrize(
    ("ours", "theirs", "fits"),
    [
        ("0.1.0", "0.1.7", True),
        ("0.1.0", "0.2.0", False),
        ("0.2.0", "0.1.0", False),
        ("0.1.0", "1.1.0", False),
        ("1.0.0", "0.0.1", False),
        ("1.2.0", "1.9.3", True),
        ("1.2.0", "2.2.0", False),
        ("10.0", "1.0", False),
    ],
)
def test_versions_that_fit(tmp_path: Path, ours: str, theirs: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(tmp_path, described=metadata(package_version=theirs))
    monkeypatch.setattr("anomalib_cxr.deploy.metadata.__version__", ours)
    if fits:
        assert read_metadata(path)["package_version"] == theirs
        return
    with pytest.raises(ExportedModelError, match=f"exported by anomalib-cxr {theirs} .*, this is {ours}"):
        read_metadata(path)


def test_runtime_must_take_the_format(openvino_model: Path, onnx_model: Path) -> None:
    with pytest.raises(ExportedModelError, match=r"ONNX Runtime takes \.onnx files only"):
        ExportedDetector(openvino_model, runtime="onnxruntime")
    with pytest.raises(ExportedModelError, match="computes in f32 only"):
        ExportedDetector(onnx_model, precision="default")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ExportedDetector(onnx_model, batch_size=0)


@pytest.mark.parametrize("kind", ["onnx_model", "openvino_model"])
def test_a_renamed_model_is_scored_by_its_own_weights(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    copy = path.with_stem("chest")
    shutil.copy(path, copy)
    weights = path.with_name(read_metadata(path)["weights"]["file"])
    # Another model's, under the name that a runtime would guess: its threshold is 0.9.
    others = np.frombuffer(weights.read_bytes(), np.float32).copy()
    others[others == np.float32(0.5)] = 0.9
    copy.with_name(weights.name.replace("model", "chest")).write_bytes(others.tobytes())
    detector = ExportedDetector(copy)
    assert detector.metadata["model"] == "MeanBrightness"
    assert detector.predict([np.full((40, 40), 0.7, np.float32)])[0].abnormal
