"""Splits are patient-safe, seeded and independent of row order, held by random tables."""

import hashlib

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_cxr.data.splits import (
    assign_folds,
    deal_patients,
    draw_patients,
    order_patients,
    shrink_counts,
    split_by_counts,
    split_by_fold,
    split_by_patient,
    split_officially,
    take_fraction,
)

rows = st.lists(
    st.tuples(st.integers(0, 25).map("p{}".format), st.sampled_from(["normal", "abnormal"])), min_size=1, max_size=80
)


def frame(pairs) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["patient_id", "label"])


def test_order_is_the_published_hash_order():
    ids = [f"patient{i}" for i in range(50)]
    expected = sorted(ids, key=lambda p: hashlib.blake2b(b"3:" + p.encode()).hexdigest())
    assert order_patients(reversed(ids), seed=3) == expected
    assert order_patients(ids, seed=4) != expected
    assert order_patients(["b", "a", "c"], seed=0) == ["c", "a", "b"]  # frozen, by b2sum


@settings(max_examples=200, deadline=None)
@given(pairs=rows, seed=st.integers(0, 10), val=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4), data=st.data())
def test_split_is_patient_safe_and_order_free(pairs, seed, val, test, data):
    table = frame(pairs)
    split = split_by_patient(table, seed, val, test)
    assert split.notna().all()
    parts = {}
    for (patient, label), part in zip(pairs, split, strict=True):
        assert parts.setdefault(patient, part) == part
        assert not (label == "abnormal" and part == "train")
    shuffled = data.draw(st.permutations(pairs))
    again = split_by_patient(frame(shuffled), seed, val, test)
    assert {p: s for (p, _), s in zip(shuffled, again, strict=True)} == parts


@settings(max_examples=100, deadline=None)
@given(pairs=rows, seed=st.integers(0, 5), num_folds=st.integers(2, 6))
def test_folds_cover_everyone_once(pairs, seed, num_folds):
    table = frame(pairs)
    folds = assign_folds(table, num_folds, seed)
    assert table.assign(fold=folds).groupby("patient_id")["fold"].nunique().max() == 1
    assert set(folds) <= set(range(num_folds))
    # Each stratum is spread: greedy dealing leaves folds no further apart than one patient's images.
    diseased = table["patient_id"].isin(table.loc[table["label"] == "abnormal", "patient_id"])
    for stratum in (table[diseased], table[~diseased]):
        if len(stratum):
            sizes = folds[stratum.index].value_counts().reindex(range(num_folds), fill_value=0)
            assert sizes.max() - sizes.min() <= stratum["patient_id"].value_counts().max()


@settings(max_examples=100, deadline=None)
@given(pairs=rows, seed=st.integers(0, 5), normal=st.integers(0, 20), abnormal=st.integers(0, 20))
def test_draw_never_overshoots_and_stops_only_for_want_of_patients(pairs, seed, normal, abnormal):
    table = frame(pairs)
    wanted = {"normal": normal, "abnormal": abnormal}
    drawn = draw_patients(table, wanted, seed)
    got = table[table["patient_id"].isin(drawn)]["label"].value_counts()
    room = {label: number - got.get(label, 0) for label, number in wanted.items()}
    assert min(room.values()) >= 0
    for patient, images in table[~table["patient_id"].isin(drawn)].groupby("patient_id"):
        need = images["label"].value_counts()
        assert any(need.get(label, 0) > room[label] for label in wanted), patient


def test_splits_are_frozen():
    """The same on every machine and with every library: computed once, then written down."""
    table = frame([(f"p{i // 2}", "abnormal" if i % 7 == 0 else "normal") for i in range(40)])
    letters = split_by_patient(table, seed=3, val=0.2, test=0.2).map({"train": "r", "val": "v", "test": "s"})
    assert "".join(letters) == "vvrrrrvvrrssrrssssssssrrvvrrvvvvrrssrrvv"
    assert "".join(map(str, assign_folds(table, 5, seed=3))) == "4400000033334411220033334422221111001122"
    table["split"] = split_by_patient(table, seed=3, val=0.2, test=0.2)
    assert (
        "".join(map(str, take_fraction(table, 3, fraction=0.4).astype(int)))
        == "0000111100000011110000000011001100001100"
    )


def test_counted_splits_are_disjoint_and_drawn_in_order():
    table = frame([(f"n{i // 3}", "normal") for i in range(30)] + [(f"a{i // 2}", "abnormal") for i in range(20)])
    split = split_by_counts(table, {"test": {"normal": 6, "abnormal": 4}, "train": {"normal": 18}}, seed=1)
    found = table.assign(split=split).groupby(["split", "label"]).size().to_dict()
    assert found == {
        ("test", "normal"): 6,
        ("test", "abnormal"): 4,
        ("train", "normal"): 18,
        ("", "normal"): 6,
        ("", "abnormal"): 16,
    }
    assert table.assign(split=split).groupby("patient_id")["split"].nunique().max() == 1
    order = order_patients(table["patient_id"][table["label"] == "normal"], 1)
    drawn = table.assign(split=split).drop_duplicates("patient_id").set_index("patient_id")["split"]
    assert [drawn[patient] for patient in order] == ["test"] * 2 + ["train"] * 6 + [""] * 2


def test_a_round_trains_on_patients_without_disease_and_validates_on_the_next_fold():
    pairs = [(f"n{i}", "normal") for i in range(20)] + [(f"a{i}", "abnormal") for i in range(20)]
    pairs += [(f"m{i}", label) for i in range(10) for label in ("normal", "abnormal")]
    table = frame(pairs)
    folds = assign_folds(table, 5, seed=0)
    for fold in range(5):
        split = split_by_fold(table, fold, 5, seed=0)
        assert (split[folds == fold] == "test").all()
        assert (split[folds == (fold + 1) % 5] == "val").all()
        others = ~folds.isin([fold, (fold + 1) % 5])
        pure = table["patient_id"].str.startswith("n")
        assert (split[others & pure] == "train").all()
        assert (split[others & ~pure] == "").all()
    for fold, num_folds in ((5, 5), (-1, 5), (0, 2)):
        with pytest.raises(ValueError, match="needs num_folds >= 3"):
            split_by_fold(table, fold, num_folds, 0)


def test_fraction_takes_the_first_patients_of_each_group():
    pairs = [(f"n{i}", "normal") for i in range(100)] + [(f"a{i}", "abnormal") for i in range(50)]
    table = frame(pairs).assign(split=["train", "test"] * 75)
    taken = table[take_fraction(table, seed=1, fraction=0.1)]
    assert taken.groupby(["split", "label"]).size().to_dict() == {
        ("train", "normal"): 5,
        ("test", "normal"): 5,
        ("train", "abnormal"): 3,  # 2.5, rounded
        ("test", "abnormal"): 3,
    }
    first = order_patients(table.query("split == 'test' and label == 'normal'")["patient_id"], 1)[:5]
    assert set(taken.query("split == 'test' and label == 'normal'")["patient_id"]) == set(first)
    assert take_fraction(table, seed=1, limit=7).sum() == 6  # 2.3 + 2.3 + 1.2 + 1.2, rounded, and never more than 7
    for arguments in ({"fraction": 0.0}, {"fraction": 1.5}, {"limit": 3}):
        with pytest.raises(ValueError, match=r"fraction must be|limit 3 is too low"):
            take_fraction(table, 1, **arguments)


def test_counts_shrink_in_proportion_only_where_needed():
    table = frame([(f"n{i}", "normal") for i in range(100)] + [(f"a{i}", "abnormal") for i in range(50)])
    wanted = {"train": {"normal": 300}, "test": {"normal": 100, "abnormal": 40}}
    assert shrink_counts(table, wanted) == {"train": {"normal": 75}, "test": {"normal": 25, "abnormal": 40}}
    assert shrink_counts(table.head(1), {"test": {"normal": 9, "abnormal": 9}}) == {
        "test": {"normal": 1, "abnormal": 1}
    }


def test_single_image_patients_give_exact_shares():
    table = frame([(f"n{i}", "normal") for i in range(1000)] + [(f"a{i}", "abnormal") for i in range(300)])
    split = split_by_patient(table, seed=0, val=0.15, test=0.15)
    counts = pd.crosstab(table["label"], split)
    assert counts.loc["normal"].to_dict() == {"test": 150, "train": 700, "val": 150}
    assert counts.loc["abnormal"].to_dict() == {"test": 150, "train": 0, "val": 150}
    assert (split != split_by_patient(table, seed=1)).any()


def test_validation_of_an_official_training_set():
    rows = [(f"n{i}", "normal") for i in range(1000)] + [(f"a{i}", "abnormal") for i in range(200)]
    rows += [(f"a{i}", "normal") for i in range(200)]  # patients with both
    table = frame(rows)
    part = table["patient_id"].map(lambda patient: "" if patient == "n0" else "test" if patient[-1] == "7" else "train")
    split = split_officially(table, part, seed=0, val=0.2)
    assert ((split == "test") == (part == "test")).all()
    assert split[0] == ""
    assert table.assign(split=split)[split != ""].groupby("patient_id")["split"].nunique().max() == 1
    counts = pd.crosstab(table["label"], split)
    # Of 899 + 180 patients 180 and 36 validate; of the other 144 the abnormal images are not used, the normal ones are.
    assert counts.loc["normal"].to_dict() == {"": 1, "test": 120, "train": 719 + 144, "val": 180 + 36}
    assert counts.loc["abnormal"].to_dict() == {"": 144, "test": 20, "train": 0, "val": 36}
    other = split_officially(table, part, seed=1, val=0.2)
    assert (other != split).any()
    for val in (0, 1):
        with pytest.raises(ValueError, match="needs 0 < val_ratio < 1"):
            split_officially(table, part, 0, val)


@pytest.mark.parametrize(("val", "test"), [(0, 0), (0.5, 0.5), (-0.1, 0.3), (1.0, 0.0)])
def test_impossible_shares_are_refused(val, test):
    with pytest.raises(ValueError, match="shares with 0 < val"):
        split_by_patient(frame([("p", "normal")]), 0, val, test)


def test_bad_folds_and_weights_are_refused():
    with pytest.raises(ValueError, match="num_folds must be at least 2, got 1"):
        assign_folds(frame([("p", "normal")]), 1, 0)
    with pytest.raises(ValueError, match="non-negative"):
        deal_patients(frame([("p", "normal")]), {"a": -1.0, "b": 3.0}, 0)
