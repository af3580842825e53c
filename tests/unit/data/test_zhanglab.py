"""ZhangLab in its official layout: drawn copies with the real file names, and the real files where they are."""

import hashlib
import logging
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anomalib.data import AnomalibDataModule
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anomalib_cxr.data import ZhangLab
from anomalib_cxr.data.splits import SPLITS


def draw(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.full((8, 8), 90, dtype=np.uint8)).save(folder / name, format="JPEG")


@pytest.fixture
def root(tmp_path):
    """30 + 60 training images, 12 + 9 test images."""
    normal = [f"IM-{i:04}-0001.jpeg" for i in range(10)] + [f"NORMAL2-IM-{i:04}-0001.JPEG" for i in range(10)]
    normal += [f"IM-{i:04}-0001-000{k}.jpeg" for i in range(20, 25) for k in (1, 2)]
    sick = [f"person{i}_bacteria_{10 * i + k}.jpeg" for i in range(1, 21) for k in range(2)]
    sick += [f"person{i}_virus_{10 * i}.jpeg" for i in range(101, 121)]
    draw(tmp_path / "train/NORMAL", normal)
    draw(tmp_path / "train/PNEUMONIA", sick)
    draw(tmp_path / "test/NORMAL", [f"IM-{i:04}-0001.jpeg" for i in range(500, 512)])
    draw(tmp_path / "test/PNEUMONIA", [f"person{i}_virus_{i}.jpeg" for i in range(1, 10)])
    return tmp_path


def digest(names):
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def numbers(samples):
    return Counter(zip(samples["split"], samples["label"], strict=True))


def test_split_of_a_drawn_copy(root):
    samples = ZhangLab(root, val_per_class=10).samples
    assert numbers(samples) == {
        ("train", "normal"): 20,
        ("val", "normal"): 10,
        ("val", "abnormal"): 10,
        ("test", "normal"): 12,
        ("test", "abnormal"): 9,
    }
    val = set(samples.query("split == 'val'")["patient_id"])
    assert not val & set(samples.query("split == 'train'")["patient_id"])
    # person1 ... person9 are in the test set as well, so they are not drawn for validation.
    assert not {patient.partition("/")[2] for patient in val} & {f"person{i}" for i in range(1, 10)}


def test_the_validation_images_stay_what_they_were(root):
    """Results hang on this draw: it is the same as when validation was first drawn, on any machine."""
    samples = ZhangLab(root, val_per_class=10).samples
    names = sorted(Path(path).name for path in samples.query("split == 'val'")["image_path"])
    assert digest(names) == "0746300a572a0ac3"


def test_folds_test_everyone_once_and_keep_numbers_together(root):
    tested = Counter()
    for fold in range(3):
        samples = ZhangLab(root, fold=fold, num_folds=3).samples
        numbers = samples["patient_id"].str.partition("/")[2]
        assert samples.groupby(numbers)["split"].nunique().max() == 1
        tested.update(samples["image_path"][samples["split"] == "test"])
    assert set(tested.values()) == {1}
    assert len(tested) == len(list(root.rglob("*.jp*g"))) + len(list(root.rglob("*.JPEG")))


def test_fraction_manifest_and_missing_files(root, tmp_path, caplog):
    whole = ZhangLab(root, val_per_class=10, split_manifest=tmp_path / "split.csv").samples
    half = ZhangLab(root, val_per_class=10, fraction=0.5).samples
    assert set(half["image_path"]) < set(whole["image_path"])
    split = whole.set_index("image_path")["split"]
    assert (split[half["image_path"]].to_numpy() == half["split"].to_numpy()).all()
    assert 0.4 < half["patient_id"].nunique() / whole["patient_id"].nunique() < 0.6
    again = ZhangLab(root, val_per_class=10, split_manifest=tmp_path / "split.csv", seed=9).samples
    assert dict(zip(again["image_path"], again["split"], strict=True)) == split.to_dict()
    train, test = (whole["image_path"][whole["split"] == part].iloc[0] for part in ("train", "test"))
    Path(test).write_bytes(Path(train).read_bytes() + b"another byte")
    with caplog.at_level(logging.WARNING, logger="anomalib_cxr"):
        _ = ZhangLab(root, val_per_class=10).samples
        assert f"{train} = {test}" not in caplog.text
        Path(test).write_bytes(Path(train).read_bytes())
        _ = ZhangLab(root, val_per_class=10).samples
    assert "byte-identical files are in more than one split" in caplog.text
    Path(test).write_bytes(b"")
    data = ZhangLab(root, val_per_class=10, on_error="skip")
    assert test not in set(data.samples["image_path"])
    assert "it is empty" in data.skipped[test]


def test_links_in_circles_are_counted(root, caplog):
    before = numbers(ZhangLab(root, val_per_class=10).samples)
    (root / "train/NORMAL/loop").symlink_to(root / "train/NORMAL", target_is_directory=True)
    assert numbers(ZhangLab(root, val_per_class=10).samples) == before
    assert "1 folder links in" in caplog.text


def test_patients_and_findings_come_from_the_names(root):
    samples = ZhangLab(root, val_per_class=10).samples
    by_name = {path.rpartition("/")[2]: row for path, row in samples.set_index("image_path").iterrows()}
    assert by_name["person3_virus_3.jpeg"]["patient_id"] == "test/person3"
    assert by_name["person3_virus_3.jpeg"]["findings"] == "virus"
    assert by_name["IM-0003-0001.jpeg"]["patient_id"] == "train/IM-0003"
    assert by_name["NORMAL2-IM-0003-0001.JPEG"]["patient_id"] == "train/NORMAL2-IM-0003"
    assert by_name["IM-0021-0001-0001.jpeg"]["patient_id"] == by_name["IM-0021-0001-0002.jpeg"]["patient_id"]
    assert by_name["IM-0021-0001-0001.jpeg"]["findings"] == ""


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), per_class=st.integers(2, 20))
def test_no_patient_in_two_splits_for_any_seed(tmp_path_factory, seed, per_class):
    root = tmp_path_factory.getbasetemp() / "property"
    if not root.exists():
        for part, first in (("train", 0), ("test", 12)):
            draw(root / part / "NORMAL", [f"IM-{i:04}-{k:04}.jpeg" for i in range(first, first + 14) for k in (1, 2)])
            sick = [f"person{i}_virus_{i}{k}.jpeg" for i in range(first, first + 15) for k in range(1 + i % 3)]
            draw(root / part / "PNEUMONIA", sick)
    samples = ZhangLab(root, val_per_class=per_class, seed=seed).samples
    assert samples.groupby("patient_id")["split"].nunique().max() == 1
    assert samples["image_path"].is_unique
    test_files = {str(path) for path in (root / "test").rglob("*.jpeg")}
    assert set(samples.query("split == 'test'")["image_path"]) == test_files


def test_official_test_set_is_complete_after_setup(root):
    data = ZhangLab(root, val_per_class=10, num_workers=0)
    data.setup()
    paths = [path for batch in data.test_dataloader() for path in batch.image_path]
    assert sorted(paths) == sorted(str(path) for path in (root / "test").rglob("*.jpeg"))


def test_val_folder_is_joined_to_train(root):
    before = numbers(ZhangLab(root, val_per_class=10).samples)
    draw(root / "val/NORMAL", [f"NORMAL2-IM-14{i:02}-0001.jpeg" for i in range(8)])
    draw(root / "val/PNEUMONIA", [f"person19{i}_bacteria_1.jpeg" for i in range(8)])
    after = numbers(ZhangLab(root, val_per_class=10).samples)
    assert after - before == Counter({("train", "normal"): 8})


def test_seed_and_file_order(root):
    first = ZhangLab(root, val_per_class=10, seed=1).samples
    again = ZhangLab(root, val_per_class=10, seed=1).samples
    other = ZhangLab(root, val_per_class=10, seed=2).samples
    assert first.equals(again)
    assert set(first.query("split == 'val'")["image_path"]) != set(other.query("split == 'val'")["image_path"])


def test_stray_files_are_ignored_and_counted(root, caplog):
    before = numbers(ZhangLab(root, val_per_class=10).samples)
    for name in (".DS_Store", "._IM-0001-0001.jpeg", "Thumbs.db"):
        (root / "train/NORMAL" / name).write_bytes(b"x")
    with caplog.at_level(logging.INFO, logger="anomalib_cxr"):
        assert numbers(ZhangLab(root, val_per_class=10).samples) == before
    assert "3 files in" in caplog.text


def test_counts_unlike_the_published_ones_are_said(root, caplog):
    with caplog.at_level(logging.WARNING, logger="anomalib_cxr"):
        _ = ZhangLab(root, val_per_class=10).samples
    assert "train normal 30 (published 1349)" in caplog.text
    assert "test abnormal 9 (published 390)" in caplog.text


def test_errors_name_the_folder(root):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        _ = ZhangLab(root / "nowhere").samples
    with pytest.raises(FileNotFoundError, match="give that"):
        _ = ZhangLab(root.parent).samples
    with pytest.raises(ValueError, match=r"30 normal images.*too few to take 100"):
        _ = ZhangLab(root).samples
    with pytest.raises(ValueError, match="val_per_class must be at least 1"):
        ZhangLab(root, val_per_class=0)
    for path in (root / "test/NORMAL").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"test.NORMAL holds no images"):
        _ = ZhangLab(root, val_per_class=10).samples
    (root / "test/NORMAL").rmdir()
    with pytest.raises(FileNotFoundError, match=r"test.NORMAL is missing"):
        _ = ZhangLab(root, val_per_class=10).samples
    shutil.rmtree(root / "test")
    with pytest.raises(FileNotFoundError, match="has no folder test"):
        _ = ZhangLab(root, val_per_class=10).samples


def test_constructed_from_yaml(root, tmp_path):
    config = tmp_path / "zhanglab.yaml"
    config.write_text(
        f"class_path: anomalib_cxr.data.ZhangLab\ninit_args: {{root: {root}, val_per_class: 5, train_batch_size: 4}}\n"
    )
    data = AnomalibDataModule.from_config(config)
    assert (data.name, data.val_per_class, data.train_batch_size, data.eval_batch_size) == ("ZhangLab", 5, 4, 32)


def test_real_files(shared):
    samples = ZhangLab(shared / "data/zhanglab", seed=0).samples
    assert numbers(samples) == {
        ("train", "normal"): 1249,
        ("val", "normal"): 100,
        ("val", "abnormal"): 100,
        ("test", "normal"): 117,
        ("test", "abnormal"): 195,
    }
    root = shared / "data/zhanglab"
    val = samples[samples["split"] == "val"]
    rows = [f"{Path(p).relative_to(root).as_posix()}|{s}" for p, s in zip(val["image_path"], val["label"], strict=True)]
    assert digest(sorted(rows)) == "37b59e8d66c66a94"  # taken before the split moved to the shared table base
    findings = Counter(samples["findings"][samples["split"] == "test"])
    assert findings == {"": 117, "bacteria": 116, "virus": 79}
    assert samples.groupby("patient_id")["split"].nunique().max() == 1


def numbers_of(samples):
    """Number of each image by its file name alone: the digits behind "IM-" or "person"."""
    names = [Path(path).name.upper() for path in samples["image_path"]]
    return [("IM" if "IM-" in name else "P", int(re.search(r"(?:IM-|PERSON)(\d+)", name)[1])) for name in names]


def shared_numbers(samples):
    """How many numbers train and validation, train and test, validation and test have in common."""
    parts = {
        part: {n for n, s in zip(numbers_of(samples), samples["split"], strict=True) if s == part} for part in SPLITS
    }
    return [len(parts[one] & parts[other]) for one, other in (("train", "val"), ("train", "test"), ("val", "test"))]


def test_real_numbers_in_two_parts(shared, caplog):
    """What the docstring and the README say of the default, and that the strict rule leaves none."""
    root = shared / "data/zhanglab"
    assert shared_numbers(ZhangLab(root).samples) == [26, 46, 5]
    with caplog.at_level(logging.INFO, logger="anomalib_cxr"):
        strict = ZhangLab(root, patient_rule="number").samples
    assert shared_numbers(strict) == [0, 0, 0]
    assert numbers(strict[strict["split"] != "train"]) == {
        ("val", "normal"): 100,
        ("val", "abnormal"): 100,
        ("test", "normal"): 117,
        ("test", "abnormal"): 195,
    }
    normals = [f for f in (root / "train/NORMAL").iterdir() if f.suffix in {".jpeg", ".jpg"}]
    tested = set(numbers_of(strict[strict["split"] == "test"]))
    lost = numbers_of(pd.DataFrame({"image_path": [str(path) for path in normals]}))
    lost = sum(number in tested for number in lost)
    assert numbers(strict)["train", "normal"] == len(normals) - lost - 100
    assert f"{lost} training images whose number is in the test set are not used" in caplog.text


def test_the_strict_rule_joins_both_series_and_both_parts(root):
    draw(root / "test/NORMAL", ["NORMAL2-IM-21-0001.jpeg"])  # IM-0021 is in train, twice
    samples = ZhangLab(root, val_per_class=5, patient_rule="number").samples
    assert shared_numbers(samples) == [0, 0, 0]
    assert not [path for path in samples["image_path"] if "IM-0021" in path]
    assert {"im-3"} == {p for p, f in zip(samples["patient_id"], samples["image_path"], strict=True) if "IM-0003" in f}
    for fold in range(3):
        assert shared_numbers(ZhangLab(root, patient_rule="number", fold=fold, num_folds=3).samples) == [0, 0, 0]
    with pytest.raises(ValueError, match="patient_rule must be one of 'name', 'number', not 'numbers'"):
        ZhangLab(root, patient_rule="numbers")
