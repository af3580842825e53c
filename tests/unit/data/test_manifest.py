"""Manifests: the same split back, and a refusal that says what was touched."""

import csv
import hashlib
import io
import json
import logging

import drawn_sets
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anomalib_cxr import __version__
from anomalib_cxr.data import RadiographTable
from anomalib_cxr.data.duplicates import find_duplicates
from anomalib_cxr.data.manifest import apply_manifest, read_manifest, write_manifest
from anomalib_cxr.data.tables import TableError


def table() -> pd.DataFrame:
    rows = [(f"im/{i}.png", f"p{i // 2}", ("normal", "abnormal")[i % 2], ("val", "test")[i // 4]) for i in range(8)]
    return pd.DataFrame(rows, columns=["image", "patient_id", "label", "split"])


def test_round_trip_and_head(tmp_path):
    path = tmp_path / "split.csv"
    digest = write_manifest(path, table().sample(frac=1, random_state=0), "Drawn", {"seed": 3, "preset": None})
    rows, head = read_manifest(path, "Drawn")
    assert rows.sort_values("image").reset_index(drop=True).equals(table().astype(rows.dtypes.iloc[0]))
    assert head["settings"] == {"seed": 3, "preset": None}
    assert head["version"] == __version__
    assert head["sha256"] == digest
    # The digest by hand: the head without it, then the rows.
    first, _, body = path.read_text().partition("\n")
    bare = {key: value for key, value in json.loads(first[2:]).items() if key != "sha256"}
    assert hashlib.sha256(f"{json.dumps(bare, sort_keys=True)}\n{body}".encode()).hexdigest() == digest
    # The order of rows does not change the file.
    again = tmp_path / "again.csv"
    write_manifest(again, table(), "Drawn", {"seed": 3, "preset": None})
    assert again.read_bytes() == path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()].count("split.csv") == len(list(tmp_path.iterdir())) - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.replace("im/3.png,p1,abnormal,val", "im/3.png,p1,abnormal,test"),
            "1 rows differ.*im/3.png,p1,abnormal,test",
        ),
        (lambda t: t.replace("im/3.png,p1,abnormal,val", "im/3.png,p9,abnormal,val"), "1 rows differ.*im/3.png,p9"),
        (
            lambda t: "\n".join(t.split("\n")[:3] + t.split("\n")[4:]),
            "'val normal' has 1 images instead of 2|'val abnormal' has 1",
        ),
        (
            lambda t: t + "im/9.png,p9,normal,test,00000000\n",
            "1 rows differ.*im/9.png.*'test normal' has 3 images instead of 2",
        ),
        (lambda t: t.replace('"seed": 3', '"seed": 4'), "its first line"),
        (lambda t: t.replace("image,patient_id", "image,patient"), "its columns are"),
        (lambda t: t.split("\n")[0] + "\n", r"its columns are \[\]"),
        (lambda t: t.partition("\n")[2], "no split manifest"),
        (lambda t: "", "no split manifest"),
        (lambda t: t.replace("Drawn", "Other"), "is a split of Other, not of Drawn"),
        (lambda t: t.replace('"images": {', '"images": 3, "was": {'), "no split manifest"),
    ],
)
def test_a_changed_manifest_is_refused(tmp_path, change, message):
    path = tmp_path / "split.csv"
    write_manifest(path, table(), "Drawn", {"seed": 3})
    path.write_text(change(path.read_text()))
    with pytest.raises(TableError, match=message):
        read_manifest(path, "Drawn")


def test_line_ends_of_another_system_are_no_change(tmp_path):
    path = tmp_path / "split.csv"
    write_manifest(path, table(), "Drawn", {})
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_manifest(path, "Drawn")[0]) == 8


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_noticed(tmp_path, data):
    path = tmp_path / "split.csv"
    write_manifest(path, table(), "Drawn", {"seed": 3})
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(2, len(content) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != content[place] and bytes([v, content[place]]).strip()))
    before = bytes(content)
    content[place] = value
    path.write_bytes(bytes(content))
    try:
        rows, head = read_manifest(path, "Drawn")
    except TableError:
        return
    # What is let through must mean the same: white space in the JSON line, at most.
    path.write_bytes(before)
    rows_before, head_before = read_manifest(path, "Drawn")
    assert rows.equals(rows_before)
    assert head == head_before


def test_a_manifest_that_does_not_fit_the_table_is_refused(tmp_path):
    manifest = table()
    ours = table().rename(columns={"image": "image_path"})
    assert apply_manifest(ours, manifest, "m.csv", "Drawn").tolist() == manifest["split"].tolist()
    extra = pd.concat([ours, ours.head(1).assign(image_path="new.png")], ignore_index=True)
    assert apply_manifest(extra, manifest, "m.csv", "Drawn").tolist() == [*manifest["split"], ""]
    with pytest.raises(TableError, match=r"2 images of the split manifest m.csv are not in the table.*im/0.png"):
        apply_manifest(ours.iloc[2:], manifest, "m.csv", "Drawn")
    with pytest.raises(TableError, match=r"another label for 1 images.*im/1.png: abnormal there, normal here"):
        apply_manifest(ours.assign(label=["normal", "normal", *ours["label"][2:]]), manifest, "m.csv", "Drawn")
    with pytest.raises(TableError, match=r"another patient_id for 8 images"):
        apply_manifest(ours.assign(patient_id="x"), manifest, "m.csv", "Drawn")


def test_the_datamodule_refuses_what_was_changed(tmp_path, caplog):
    root = drawn_sets.radiograph_table(tmp_path / "root")
    path = tmp_path / "split.csv"
    with caplog.at_level(logging.INFO, logger="anomalib_cxr"):
        _ = RadiographTable(root, table="images.csv", split_manifest=path).samples
    assert "wrote the split" in caplog.text
    lines = path.read_text().split("\n")
    row = next(csv.reader(io.StringIO(lines[2])))
    row[3] = {"train": "test", "test": "train", "val": "test"}[row[3]]
    path.write_text("\n".join([*lines[:2], ",".join(row), *lines[3:]]))
    with pytest.raises(TableError, match=f"was changed: 1 rows differ.*{row[0]}"):
        _ = RadiographTable(root, table="images.csv", split_manifest=path).samples


def test_duplicates_against_all_pairs(tmp_path):
    contents = [b"x", b"y", b"x", b"z" * 70_000 + b"1", b"z" * 70_000 + b"2", b"z" * 70_000 + b"1", b"y", b""]
    splits = ["train", "train", "test", "train", "test", "val", "train", "test"]
    paths = []
    for i, content in enumerate(contents):
        paths.append(str(tmp_path / str(i)))
        (tmp_path / str(i)).write_bytes(content)
    samples = pd.DataFrame({"image_path": [*paths, str(tmp_path / "gone")], "split": [*splits, "val"]})
    pairs = {
        (paths[i], paths[j])
        for i in range(8)
        for j in range(i + 1, 8)
        if contents[i] == contents[j] and splits[i] != splits[j]
    }
    assert set(find_duplicates(samples)) == pairs == {(paths[0], paths[2]), (paths[3], paths[5])}
