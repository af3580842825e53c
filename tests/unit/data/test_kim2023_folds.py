"""The folds of ``preset: kim2023``: who is tested when, by the published shares, and as they were published here."""

import pandas as pd
import pytest

from anomalib_cxr.data import PadChest
from anomalib_cxr.data.splits import assign_folds

FOLDS = range(5)
#: Of the first forty patients without disease, for seed 3: trained on, validated or tested (s) in each fold.
FROZEN = [
    "rrrrvrrrrrrrrvrrrrsrrrsvssrrrrrrrrssvvvr",
    "rrrrsrvrvrrrsrrrrvrrrrrsrrvrvrrrrrrrsrrr",
    "rrrsrrsrsrsvrrvvrsrvvrrrrrrvsrvrrvrrrrrr",
    "vrvrrvrrrvrrrrssvrrsrrrrrrrsrvsrvsrrrrrs",
    "rvsrrrrsrsrrrrrrrrvrrsvrvvrrrrrvsrrvrrrr",
]


def table() -> pd.DataFrame:
    """200 patients without disease and 100 with, of whom every fifth has a normal image, too."""
    rows = [(f"n{i}", "normal") for i in range(200)] + [(f"a{i}", "abnormal") for i in range(100)]
    rows += [(f"a{i}", "normal") for i in range(0, 100, 5)]
    return pd.DataFrame(rows, columns=["patient_id", "label"])


def split(fold: int, seed: int = 0) -> pd.Series:
    return PadChest("nowhere", preset="kim2023", fold=fold, seed=seed).split_preset(table())


@pytest.mark.parametrize("fold", FOLDS)
def test_each_fold_tests_the_next_three_of_twenty_blocks(fold: int) -> None:
    """Blocks of 5 %: of normal patients 3 to test, 3 to validate, 14 to train; of the others 10 and 10."""
    patients = table()
    block = assign_folds(patients, 20, 0)
    for row, part in split(fold).items():
        place = [(4 * fold + k) % 20 for k in range(20)].index(block[row])
        if patients["patient_id"][row].startswith("n"):
            expected = "test" if place < 3 else "val" if place < 6 else "train"
        else:
            expected = "test" if place < 10 else "val"
        assert part == expected, (row, place)


def test_shares_are_the_published_ones_in_each_fold() -> None:
    """Kim, Moon and Lee: 70/15/15; abnormal films, none of which trains, half and half."""
    sick = table()["patient_id"].str.startswith("a")
    tested = []
    for fold in FOLDS:
        found = split(fold)
        assert found[~sick].value_counts().to_dict() == {"train": 140, "val": 30, "test": 30}
        counts = found[sick & (table()["label"] == "abnormal")].value_counts().to_dict()
        assert counts.keys() == {"val", "test"}
        assert abs(counts["test"] - 50) <= 3
        tested.append(set(table()["patient_id"][(found == "test") & ~sick]))
    assert len(set.union(*tested)) == sum(map(len, tested)) == 150  # no normal patient is tested twice


def test_folds_are_frozen() -> None:
    """Computed once, then written down: results of another version are comparable with these."""
    letters = {"train": "r", "val": "v", "test": "s", "": "-"}
    found = ["".join(split(fold, seed=3)[:40].map(letters)) for fold in FOLDS]
    assert found == FROZEN
