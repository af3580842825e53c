"""MedIAnomaly's packed sets: the published split, and thresholds without labelled validation films."""

import json
from collections import Counter
from pathlib import Path

import drawn_sets
import pytest

from anomalib_cxr.data import MedAD
from anomalib_cxr.data.tables import TableError


def parts(samples, root: Path) -> dict[str, set[str]]:
    """Names of the images of each split and label."""
    found: dict[str, set[str]] = {}
    for path, split, label in zip(samples["image_path"], samples["split"], samples["label"], strict=True):
        found.setdefault(f"{split} {label}", set()).add(Path(path).relative_to(root / "images").as_posix())
    return found


def test_the_published_split_with_validation_from_training_normals(tmp_path, caplog):
    lists = json.loads((drawn_sets.med_ad(tmp_path) / "data.json").read_text())
    data = MedAD(tmp_path, num_workers=0, val_ratio=0.25, preset="rsna")
    found = parts(data.samples, tmp_path)
    assert found["test normal"] == set(lists["test"]["0"])
    assert found["test abnormal"] == set(lists["test"]["1"])
    assert found["train normal"] | found["val normal"] == set(lists["train"]["0"])
    assert (len(found["train normal"]), len(found["val normal"])) == (9, 3)
    assert set(found) == {"test normal", "test abnormal", "train normal", "val normal"}
    assert "3 of its 12 training normals (val_ratio 0.25) are held out, and thresholds come from them" in caplog.text
    assert "train normal 12 (published 3851), test normal 12 (published 1000)" in caplog.text
    other = parts(MedAD(tmp_path, num_workers=0, val_ratio=0.25, seed=1).samples, tmp_path)
    assert other["val normal"] != found["val normal"]


def test_a_written_split_and_folds(tmp_path):
    drawn_sets.med_ad(tmp_path)
    manifest = tmp_path / "split.csv"
    made = parts(MedAD(tmp_path, num_workers=0, split_manifest=manifest).samples, tmp_path)
    assert parts(MedAD(tmp_path, num_workers=0, split_manifest=manifest).samples, tmp_path) == made
    tested = Counter()
    for fold in range(3):
        samples = MedAD(tmp_path, num_workers=0, fold=fold, num_folds=3).samples
        assert {"val normal", "val abnormal"} <= set(parts(samples, tmp_path))
        tested.update(samples["image_path"][samples["split"] == "test"])
    assert len(tested) == 36
    assert set(tested.values()) == {1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", 'has no list of file names at "train": {"0"'),
        ('{"train": {"0": ["a.png"]}, "test": {"0": ["b.png"]}}', 'has no list of file names at "test": {"1"'),
        ('{"train": {"0": ["a.png"]}, "test": {"0": ["b.png"], "1": []}}', 'no list of file names at "test": {"1"'),
        ('{"train": {"0": [1]}, "test": {"0": ["b.png"], "1": ["c.png"]}}', 'no list of file names at "train": {"0"'),
        ('{"train": {"0": ["a.png"]}, "test": {"0": ["a.png"], "1": ["c.png"]}}', "'a.png' of test 0 is listed twice"),
        ('{"train": {"0": ["../a.png"]}, "test": {"0": ["b.png"], "1": ["c.png"]}}', "train 0: .*leads out of"),
        (None, "does not exist, give the folder that holds data.json"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "data.json").write_text(content)
    with pytest.raises(TableError, match=f"data.json.*{message}"):
        _ = MedAD(tmp_path, num_workers=0).samples
