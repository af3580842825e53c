"""Broken tables of every kind: the parsers answer with a result or with one of our own errors.

2,000 inputs each for what all tables go through, and for whole data sets as many as the set's entry says, or
``CXR_FUZZ``, and 25,000 with ``pytest -m slow tests/unit/data/test_fuzzed_tables.py``.
"""

import gzip
import logging
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import drawn_sets
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from anomalib_cxr import data as sets
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
# How each set is drawn and made, its tables, and how many broken ones the gate feeds it: where all cells go through
# pandas, a table takes ten times as long.
MANY, FEW = 2_000, 200
TARGETS: dict[str, tuple[Callable[[Path], Path], dict[str, object], list[str], int]] = {
    "PadChest": (partial(drawn_sets.padchest, normal=3, abnormal=2), {}, ["PADCHEST*"], FEW),
    "CheXpert": (partial(drawn_sets.chexpert, normal=2, abnormal=2), {}, ["*/train.csv"], FEW),
    "RSNA": (partial(drawn_sets.rsna, normal=2, abnormal=2, other=1), {}, ["*_labels.csv", "*_class_info.csv"], FEW),
    "MIMICCXR": (
        partial(drawn_sets.mimic_cxr, normal=2, abnormal=2),
        {},
        ["*-metadata*", "*-split*", "*-chexpert*"],
        FEW,
    ),
    "NIH": (partial(drawn_sets.nih, normal=3, abnormal=2), {"masks": True}, ["Data*", "BBox*", "*_list.txt"], MANY),
    "MedAD": (partial(drawn_sets.med_ad, normal=4, abnormal=2), {}, ["data.json"], MANY),
    "RadiographTable": (
        partial(drawn_sets.radiograph_table, normal=2, abnormal=2),
        {"table": "images.csv"},
        ["images.csv"],
        FEW,
    ),
    "VinDrCXR": (
        partial(drawn_sets.vindr_cxr, normal=2, abnormal=1, physionet=True, suffix=".png"),
        {},
        ["annotations/*_train.csv"],
        MANY,
    ),
}
KINDS = ("insert", "overwrite", "delete", "cut", "repeat")
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(KINDS),
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


def draw_edits(generator: random.Random) -> list[tuple[float, str, bytes]]:
    """The same kinds of edits, without the cost of a search for the smallest that fails."""
    return [
        (generator.random(), generator.choice(KINDS), generator.choice([*TOKENS, generator.randbytes(3)]))
        for _ in range(generator.randint(1, 4))
    ]


def check(target: str, folder: Path, examples: int) -> None:
    """Feed a target with so many broken inputs; each follows from its number."""
    draw, arguments, patterns, _ = TARGETS[target]
    data = getattr(sets, target)(draw(folder), num_workers=0, **arguments)
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    assert len(paths) >= len(patterns)
    tables = {path: gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in paths}
    outcomes = {"read": 0, "refused": 0}
    for number in range(examples):
        generator = random.Random(number)
        path = paths[number % len(paths)]
        path.unlink()  # to write over a file waits for the disk
        path.write_bytes(mutate(tables[path], draw_edits(generator)))
        try:
            found = data.load_table()
            outcomes["read"] += 1
        except TableError:
            outcomes["refused"] += 1
            continue
        except Exception as error:
            msg = f"input {number}, of {path.name}"
            raise AssertionError(msg) from error
        finally:
            path.unlink()
            path.write_bytes(tables[path])
        assert set(found["label"]) <= {"normal", "abnormal", ""}, number
        for image in found["image_path"]:
            assert ".." not in image.split("/"), number
            assert not image.startswith("/"), number
    assert min(outcomes.values()) > examples // 100, outcomes  # neither all nothing nor all nonsense


@pytest.fixture
def silent():
    """Warnings that a set is not complete take longer than to read its tables."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("target", TARGETS)
def test_broken_input_is_refused_by_our_own_errors(target, tmp_path):
    check(target, tmp_path, int(os.environ.get("CXR_FUZZ", TARGETS[target][-1])))


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
@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("target", TARGETS)
def test_many_more_broken_inputs(target, tmp_path):
    check(target, tmp_path, 25_000)
