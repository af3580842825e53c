"""Tables: nothing in them is a formula to a spreadsheet, all comes back as it was, and every row is whole."""

import csv
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_cxr.csv_tables import growing_table, neutral, restored, write_table
from anomalib_cxr.data.manifest import read_manifest, write_manifest
from anomalib_cxr.metrics import read_predictions, write_predictions

HOSTILE = [
    '=HYPERLINK("http://a.b","c")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1+1",
    "\r=1+1",
    " =1+1",
    "'=1",
    "''@x",
    "＝1",
]
PLAIN = ["", "a=b", "-1.5", "+2e-3", "-inf", "'tis", "im/3.png", "-.5", "1-2"]


def is_a_formula(cell: str) -> bool:
    """By the list of OWASP, with the blanks that a spreadsheet drops, and numbers let through."""
    try:
        float(cell)
    except ValueError:
        return cell.strip(" \t\r\n")[:1] in tuple("=+-@＝＋－＠")
    return False


@given(st.text(alphabet=st.sampled_from("'=+-@ \t\r\n,\"1.eax＝"), max_size=8))
def test_any_text_comes_back_and_is_no_formula(text: str) -> None:
    assert restored(neutral(text)) == text
    assert not is_a_formula(neutral(text))


def test_numbers_and_plain_text_stay_as_they_are() -> None:
    for cell in (*PLAIN, -1.5, 3, None):
        assert neutral(cell) is cell


def cells(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [cell for row in csv.reader(file) for cell in row]


def test_every_table_is_safe_and_is_read_back_the_same(tmp_path: Path) -> None:
    images = [f"{cell}/{number}" for number, cell in enumerate([*HOSTILE, *PLAIN])]
    predictions = pd.DataFrame(
        {
            "image": images,
            "patient_id": [*HOSTILE, *PLAIN],
            "label": "",
            "findings": [*PLAIN, *HOSTILE],
            "raw_score": [-float(number) for number in range(len(images))],
            "score": 0.5,
            "p_value": 0.5,
            "decision": "",
            "split_hash": "",
            "picture": images[::-1],
            "assessable": "no",
            "not_assessable_because": [*PLAIN, *HOSTILE],
        }
    )
    write_predictions(tmp_path / "predictions.csv", predictions)
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "predictions.csv"), predictions, check_exact=True)
    split = predictions[["image", "patient_id"]].assign(label="normal", split="train").sort_values("image")
    write_manifest(tmp_path / "split.csv", split, "=Set", {})
    rows, _ = read_manifest(tmp_path / "split.csv", "=Set")
    assert rows.to_numpy().tolist() == split.to_numpy().tolist()
    write_table(tmp_path / "table.csv", pd.DataFrame({"=model": HOSTILE, "number": [-1.0] * len(HOSTILE)}))
    with growing_table(tmp_path / "growing.csv", "image", "=reason") as add:
        for cell in HOSTILE:
            add(cell, "-0.5")
    for path in tmp_path.iterdir():
        found = cells(path)
        assert not [cell for cell in found if is_a_formula(cell)], path.name
        assert len([cell for cell in found if cell.startswith("'")]) >= len(HOSTILE), path.name
    assert cells(tmp_path / "growing.csv").count("-0.5") == len(HOSTILE)


def test_a_numbers_column_stays_numbers(tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv", pd.DataFrame({"score": [-1.5, 2.0], "n": [-1, 2], "kept": [True, False]}))
    assert (tmp_path / "table.csv").read_bytes() == b"score,n,kept\n-1.5,-1,True\n2.0,2,False\n"


FILL = """
import resource, sys
from pathlib import Path
from anomalib_cxr.csv_tables import growing_table, write_table
import pandas as pd
write_table("whole.csv", pd.DataFrame({"a": ["first"]}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
added = 0
try:
    with growing_table("growing.csv", "image", "score") as add:
        while True:
            add(f"film number {added}", "0.5")
            added += 1
except OSError:
    print(added)
try:
    write_table("whole.csv", pd.DataFrame({"a": ["second"] * 1000}))
except OSError:
    print("full")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the limit on the size of a file is a matter of POSIX")
def test_a_full_disk_leaves_whole_rows_and_whole_files(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FILL], cwd=tmp_path, capture_output=True, text=True, check=True)
    added, full = done.stdout.split()
    content = (tmp_path / "growing.csv").read_text()
    assert content.endswith("\n")
    assert len(pd.read_csv(tmp_path / "growing.csv")) == int(added) > 10
    assert full == "full"
    assert (tmp_path / "whole.csv").read_text() == "a\nfirst\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growing.csv", "whole.csv"]
