"""Broken tables of every kind: the parsers answer with a result or with one of our own errors.

2,000 inputs each for what all tables go through; for whole data sets, where pandas takes some milliseconds a table,
``CXR_FUZZ`` inputs (200 unless told), and 25,000 with ``pytest -m slow tests/unit/data/test_fuzzed_tables.py``.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import drawn_sets
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from anomalib_cxr.data import MIMICCXR, RSNA, CheXpert, PadChest, RadiographTable
from anomalib_cxr.data.files import inside
from anomalib_cxr.data.tables import TableError, parse_labels, read_table

TOKENS = [
    *(b'"', b",", b";", b"\n", b"\r", b"\0", b"\xff", b"'", b"[", b"]", b"\\", b"\xef\xbb\xbf", b"\x1f\x8b"),
    *(
        b"None",
        b"nan",
        b"-1",
        b"1e999",
        b"../../x.png",
        b"/etc/passwd",
        b"C:",
        b"[__import__('os')]",
        b"[['a']]",
        b"9" * 400,
    ),
    *(b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x00\x01\x86\xa0", b"\x7f\xff\xff\xff"),
]
TARGETS = {
    "PadChest": ["padchest"],
    "CheXpert": ["chexpert"],
    "RSNA": ["stage_2_train_labels", "stage_2_detailed_class_info"],
    "MIMICCXR": ["metadata", "split", "chexpert"],
    "RadiographTable": ["images"],
}
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["insert", "overwrite", "delete", "cut", "repeat"]),
        st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


QUIETLY = partial(
    settings,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


def mutate(content: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    """Apply edits at relative places."""
    for place, kind, token in edits:
        at = int(place * len(content))
        if kind == "insert":
            content = content[:at] + token + content[at:]
        elif kind == "overwrite":
            content = content[:at] + token + content[at + len(token) :]
        elif kind == "delete":
            content = content[:at] + content[at + len(token) :]
        elif kind == "cut":
            content = content[:at]
        else:
            content = content[:at] + content[max(0, at - 40) :]
    return content


def table(folder: Path, name: str) -> tuple[bytes, Callable[[bytes], object]]:
    """A valid table, and what reads it."""
    if name == "padchest":
        drawn_sets.padchest(folder, normal=3, abnormal=2)
        path = folder / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
        rows = drawn_sets.gzip.decompress(path.with_suffix(".csv.gz").read_bytes())
        data = PadChest(folder, num_workers=0)
    elif name == "chexpert":
        path = drawn_sets.chexpert(folder, normal=2, abnormal=2) / "CheXpert-v1.0-small/train.csv"
        rows, data = path.read_bytes(), CheXpert(folder, num_workers=0)
    elif name in TARGETS["MIMICCXR"]:
        drawn_sets.mimic_cxr(folder, normal=2, abnormal=2)
        path = folder / f"mimic-cxr-2.0.0-{name}.csv"
        rows = drawn_sets.gzip.decompress(path.with_suffix(".csv.gz").read_bytes())
        data = MIMICCXR(folder, num_workers=0)
    elif name == "images":
        path = drawn_sets.radiograph_table(folder, normal=2, abnormal=2) / "images.csv"
        rows, data = path.read_bytes(), RadiographTable(folder, table="images.csv", num_workers=0)
    else:
        path = drawn_sets.rsna(folder, normal=2, abnormal=2, other=1) / f"{name}.csv"
        rows, data = path.read_bytes(), RSNA(folder, num_workers=0)

    def read(content: bytes) -> object:
        path.write_bytes(content)
        return data.load_table()

    return rows, read


def check(target: str, folder: Path, examples: int) -> None:
    """Feed a target with so many broken inputs."""
    outcomes = {"read": 0, "refused": 0}
    tables = {name: table(folder / name, name) for name in TARGETS[target]}

    def read(name: str, edits: list[tuple[float, str, bytes]]) -> None:
        rows, load = tables[name]
        found = load(mutate(rows, edits))
        assert set(found["label"]) <= {"normal", "abnormal", ""}
        for path in found["image_path"]:
            assert ".." not in path.split("/")
            assert not path.startswith("/")

    @QUIETLY(max_examples=examples)
    @given(name=st.sampled_from(TARGETS[target]), edits=EDITS)
    def fuzz(name: str, edits: list[tuple[float, str, bytes]]) -> None:
        try:
            read(name, edits)
            outcomes["read"] += 1
        except TableError:
            outcomes["refused"] += 1

    fuzz()
    assert min(outcomes.values()) > examples // 100, outcomes  # neither all nothing nor all nonsense


@pytest.mark.parametrize("target", TARGETS)
def test_broken_input_is_refused_by_our_own_errors(target, tmp_path):
    check(target, tmp_path, int(os.environ.get("CXR_FUZZ", "200")))


@QUIETLY(max_examples=2_000)
@given(edits=EDITS)
def test_broken_csv_is_refused_by_our_own_errors(tmp_path, edits):
    path = tmp_path / "table.csv"
    path.write_bytes(mutate(b"name,label\n'a.png',normal\n\"b, c.png\",abnormal\n", edits))
    try:
        frame = read_table(path, ["name"], ["label"])
    except TableError:
        return
    assert all(isinstance(cell, str) for cell in frame["name"])


@QUIETLY(max_examples=2_000)
@given(edits=EDITS)
def test_broken_label_cells_are_refused_by_our_own_errors(edits):
    cell = mutate(b"['normal', \"it's\", ' pleural effusion']", edits).decode(errors="replace")
    try:
        labels = parse_labels(cell)
    except TableError:
        return
    assert all(label and label == label.strip() and label in cell for label in labels)


@QUIETLY(max_examples=2_000)
@given(edits=EDITS)
def test_broken_paths_are_refused_by_our_own_errors(edits):
    listed = mutate(b"images/./p10/../a.png", edits).decode(errors="replace")
    try:
        path = inside(Path("/data/set"), listed)
    except ValueError:
        return
    assert os.path.normpath(f"/data/set/{path}") == f"/data/set/{path}"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_more_broken_inputs(target, tmp_path):
    check(target, tmp_path, 25_000)
