"""Somebody's list of file names as the split of a set: every name is found once, or the list is refused."""

import hashlib
import json
import logging
import random
from pathlib import Path

import drawn_sets
import pandas as pd
import pytest

from anomalib_cxr.data import RSNA, PadChest, RadiographTable
from anomalib_cxr.data.split_list import apply_split_list, read_split_list
from anomalib_cxr.data.tables import TableError


def write_csv(path: Path, parts: dict[str, str]) -> Path:
    drawn_sets.write_csv(path, [{"image": name, "split": part} for name, part in parts.items()])
    return path


def splits(data) -> dict[str, str]:
    samples = data.samples
    return {Path(p).name: s for p, s in zip(samples["image_path"], samples["split"], strict=True)}


@pytest.fixture
def dealt(tmp_path) -> dict[str, str]:
    """A split of a drawn PadChest that is not its own: by file name, every fifth patient left out."""
    samples = PadChest(drawn_sets.padchest(tmp_path / "data"), num_workers=0).samples
    patients = {patient: i for i, patient in enumerate(sorted(samples["patient_id"]))}
    words = ("train", "valid", "TEST", "Training")
    return {
        Path(path).name: words[patients[patient] % 4]
        for path, patient in zip(samples["image_path"], samples["patient_id"], strict=True)
        if patients[patient] % 5
    }


def test_names_in_csv_and_json_give_the_same_split(tmp_path, dealt, caplog):
    right = {"train": "train", "Training": "train", "valid": "val", "TEST": "test"}
    path = write_csv(tmp_path / "list.csv", dealt)
    with caplog.at_level(logging.INFO, logger="anomalib_cxr"):
        data = PadChest(tmp_path / "data", split_list=path, num_workers=0)
        found = splits(data)
    sick = {Path(p).name for p in data.samples["image_path"][data.samples["label"] == "abnormal"]}
    assert found == {name: right[word] for name, word in dealt.items() if name in found}
    left = set(dealt) - set(found)
    assert left
    assert all(right[dealt[name]] == "train" for name in left)  # the abnormal ones of its training part
    assert not left & sick
    assert f"SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}" in caplog.text
    flat = {part: [name for name, word in dealt.items() if right[word] == part] for part in ("train", "val", "test")}
    nested = {part: {"0": names[::2], "1": names[1::2]} for part, names in flat.items()}
    for content in (flat, nested):
        (tmp_path / "list.json").write_text("\ufeff\n" + json.dumps(content))
        assert splits(PadChest(tmp_path / "data", split_list=tmp_path / "list.json", num_workers=0)) == found


def test_a_list_of_png_files_serves_for_dicom_files(tmp_path):
    drawn_sets.rsna(tmp_path)
    whole = splits(RSNA(tmp_path, num_workers=0))
    path = write_csv(tmp_path / "list.csv", {f"{Path(name).stem}.png": part for name, part in whole.items()})
    assert splits(RSNA(tmp_path, split_list=path, seed=9, num_workers=0)) == whole


def test_validation_is_drawn_where_the_list_has_none(tmp_path, caplog):
    drawn_sets.rsna(tmp_path)
    samples = RSNA(tmp_path, num_workers=0).samples
    parts = {
        Path(path).name: "test" if split == "test" else "train"
        for path, split in zip(samples["image_path"], samples["split"], strict=True)
    }
    path = write_csv(tmp_path / "list.csv", parts)
    samples = RSNA(tmp_path, split_list=path, val_ratio=0.3, num_workers=0).samples
    assert "names no validation images: val_ratio 0.3" in caplog.text
    assert {Path(p).name for p in samples["image_path"][samples["split"] == "test"]} == {
        name for name, part in parts.items() if part == "test"
    }
    assert set(samples["label"][samples["split"] == "val"]) == {"normal", "abnormal"}
    assert samples.groupby("patient_id")["split"].nunique().max() == 1


def test_a_list_with_a_patient_in_two_parts_is_refused(tmp_path):
    drawn_sets.rsna(tmp_path)
    whole = splits(RSNA(tmp_path, num_workers=0))
    first = next(name for name, part in whole.items() if part == "train")
    path = write_csv(tmp_path / "list.csv", whole | {first: "test"})
    with pytest.raises(ValueError, match="1 patients are in more than one split"):
        _ = RSNA(tmp_path, split_list=path, num_workers=0).samples


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"nobody.png": "test"},
            "1 of .* images of the split list .* are not in the table after its filters.*nobody.png",
        ),
        ({"images/000.jpg": "train"}, "names images/000.png twice, once as 'images/000.jpg'"),
        ({"images/000.png": "tset"}, "unknown part 'tset' of 'images/000.png'"),
        ({"": "test"}, "an image of test has no name"),
    ],
)
def test_names_that_are_not_found_or_found_twice_are_refused(tmp_path, change, message):
    drawn_sets.radiograph_table(tmp_path)
    arguments = {"table": "images.csv", "num_workers": 0}
    whole = {f"images/{name}": part for name, part in splits(RadiographTable(tmp_path, **arguments)).items()}
    path = write_csv(tmp_path / "list.csv", whole)
    assert splits(RadiographTable(tmp_path, split_list=path, **arguments)) == splits(
        RadiographTable(tmp_path, **arguments)
    )
    write_csv(path, whole | change)
    with pytest.raises(TableError, match=message):
        _ = RadiographTable(tmp_path, split_list=path, **arguments).samples


def test_where_names_are_looked_for():
    table = pd.DataFrame({"image_path": ["a/x.png", "b/x.png", "b/y.dcm", "z.png"]}, index=[7, 5, 3, 1])

    def find(**parts: str) -> dict[int, str]:
        return apply_split_list(
            table, {name.replace("_", "/"): part for name, part in parts.items()}, "l", "T"
        ).to_dict()

    assert find(a_x="train", b_x="test", y="val") == {7: "train", 5: "test", 3: "val", 1: ""}
    assert find(z="val") == {7: "", 5: "", 3: "", 1: "val"}
    for name, message in (("x", "'x' of the split list l is the name of 2 images"), ("c_y", "1 of 1 images")):
        with pytest.raises(TableError, match=message):
            find(**{name: "train"})


def test_a_manifest_keeps_the_hash_of_the_list(tmp_path, dealt):
    path = write_csv(tmp_path / "list.csv", dealt)
    manifest = tmp_path / "split.csv"
    made = splits(PadChest(tmp_path / "data", split_list=path, split_manifest=manifest, num_workers=0))
    head = json.loads(manifest.read_text().partition("\n")[0].removeprefix("# "))
    assert head["settings"]["split_list"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert splits(PadChest(tmp_path / "data", split_manifest=manifest, num_workers=0)) == made
    path.write_text(path.read_text() + "\n")
    with pytest.raises(TableError, match="was made with other settings: split_list"):
        _ = PadChest(tmp_path / "data", split_list=path, split_manifest=manifest, num_workers=0).samples
    # One of a version that knew no lists, or made without one, is no split by this list.
    PadChest(tmp_path / "data", split_manifest=tmp_path / "own.csv", num_workers=0).samples  # noqa: B018
    with pytest.raises(TableError, match="split_list None there"):
        _ = PadChest(tmp_path / "data", split_list=path, split_manifest=tmp_path / "own.csv", num_workers=0).samples


def test_a_list_goes_with_no_fold_or_preset(tmp_path, dealt):
    path = write_csv(tmp_path / "list.csv", dealt)
    for other in ({"fold": 0}, {"preset": "kim2023"}):
        with pytest.raises(ValueError, match="is the split, drop fold and preset"):
            _ = PadChest(tmp_path / "data", split_list=path, num_workers=0, **other).samples


def test_broken_lists_are_refused_by_our_own_errors(tmp_path):
    as_csv = b"image,split\na/x.png,train\nb/x.png,test\ny.dcm,val\n"
    as_json = b'{"train": ["a/x.png", "\\u00e9.png"], "test": {"0": ["b/x.png"], "1": ["y.dcm"]}}'
    tokens = [b'"', b",", b"{", b"]", b"\0", b"\xff", b"\\", b"null", b"[[", b"train", b"NaN", b"9" * 5000, b"\n"]
    outcomes = {"read": 0, "refused": 0}
    path = tmp_path / "list"
    for number in range(2_000):
        generator = random.Random(number)
        content = bytearray((as_csv, as_json)[number % 2])
        for _ in range(generator.randint(1, 2)):
            place = generator.randrange(len(content) + 1)
            content[place : place + generator.randint(0, 4)] = generator.choice([*tokens, generator.randbytes(2)])
        path.unlink(missing_ok=True)  # to write over a file waits for the disk
        path.write_bytes(content)
        try:
            parts = read_split_list(path)
            outcomes["read"] += 1
        except TableError:
            outcomes["refused"] += 1
            continue
        assert set(parts.values()) <= {"train", "val", "test"}
        assert all(name and name == name.strip() and "\\" not in name for name in parts)
    assert min(outcomes.values()) > 100, outcomes
    with pytest.raises(TableError, match="cannot be read"):
        read_split_list(tmp_path)
