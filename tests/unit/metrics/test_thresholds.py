"""Thresholds against a search through all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from anomalib_cxr.metrics import (
    best_f1_threshold,
    conformal_p_values,
    normal_threshold,
    sensitivity_at_specificity,
    sensitivity_threshold,
    specificity_at_sensitivity,
)

SETS = st.tuples(st.integers(0, 10**6), st.integers(4, 40))


def drawn(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, size - 2)]
    return rng.integers(0, 12, size) + 3.0 * labels - 5, labels


@settings(max_examples=40, deadline=None)
@given(SETS)
def test_best_f1_is_the_best_of_all_thresholds(drawing) -> None:
    scores, labels = drawn(*drawing)
    f1 = {t: sk.f1_score(labels, scores >= t) for t in np.unique(scores)}
    best = max(f1.values())
    expected = max(t for t, value in f1.items() if value > best - 1e-12)
    assert best_f1_threshold(scores, labels) == expected


@settings(max_examples=40, deadline=None)
@given(SETS, st.floats(0.05, 1.0))
def test_operating_points_are_the_best_of_all_thresholds(drawing, share) -> None:
    scores, labels = drawn(*drawing)
    points = [(sk.recall_score(labels, scores >= t), sk.recall_score(labels, scores >= t, pos_label=0)) for t in
              [*np.unique(scores), 1e9]]  # fmt: skip
    sensitivity = max(point[0] for point in points if point[1] >= share - 1e-12)
    specificity = max(point[1] for point in points if point[0] >= share - 1e-12)
    found = sensitivity_at_specificity(scores, labels, share)
    assert found.sensitivity == pytest.approx(sensitivity)
    assert found.specificity >= share - 1e-12
    other = specificity_at_sensitivity(scores, labels, share)
    assert other.specificity == pytest.approx(specificity)
    assert other.sensitivity >= share - 1e-12
    for point in (found, other):  # the threshold gives what the point says
        called = scores >= point.threshold
        assert sk.recall_score(labels, called) == pytest.approx(point.sensitivity)
        assert sk.recall_score(labels, called, pos_label=0) == pytest.approx(point.specificity)
    assert sensitivity_threshold(scores, labels, share) == other.threshold


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(9, 60), st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.9]))
def test_normal_threshold_calls_what_the_p_value_calls(seed, size, rate) -> None:
    rng = np.random.default_rng(seed)
    normal = rng.integers(0, 15, size).astype(float)
    queries = np.r_[normal, normal + 0.5, rng.uniform(-2, 20, 30)]
    called = queries >= normal_threshold(normal, rate)
    assert called.tolist() == (conformal_p_values(normal, queries) <= rate + 1e-9).tolist()


def test_normal_threshold_keeps_its_rate_on_new_normal_images() -> None:
    rng = np.random.default_rng(0)
    rates = [np.mean(rng.normal(size=500) >= normal_threshold(rng.normal(size=39), 0.1)) for _ in range(800)]
    assert np.mean(rates) == pytest.approx(0.1, abs=0.006)  # standard error 0.0017


def test_a_rate_too_low_for_the_images_is_refused() -> None:
    assert normal_threshold([1.0] * 8 + [5.0], 0.1) > 5
    with pytest.raises(ValueError, match="at least 9 normal images, there are 8"):
        normal_threshold([1.0] * 8, 0.1)


@pytest.mark.parametrize(("label", "missing"), [(0, "abnormal"), (1, "normal")])
def test_a_missing_class_is_refused(label, missing) -> None:
    for choose in (best_f1_threshold, lambda s, y: sensitivity_threshold(s, y, 0.9)):
        with pytest.raises(ValueError, match=f"none of the 3 images is {missing}"):
            choose([1.0, 2.0, 3.0], [label] * 3)


def test_equal_scores_call_everything_abnormal() -> None:
    assert best_f1_threshold([2.0] * 4, [0, 0, 1, 1]) == 2.0
    assert sensitivity_at_specificity([2.0] * 4, [0, 0, 1, 1], 0.5).sensitivity == 0
    assert sensitivity_at_specificity([2.0] * 4, [0, 0, 1, 1], 0.5).threshold > 2


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        sensitivity_threshold([1.0, 2.0], [0, 1], share)
    with pytest.raises(ValueError, match="must lie in"):
        normal_threshold([1.0] * 100, share)
