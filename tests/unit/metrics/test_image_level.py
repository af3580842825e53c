"""Image-level metrics against scikit-learn, weighted and not."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from anomalib_cxr.metrics import image_metrics
from anomalib_cxr.metrics.image_level import weighted_metrics


def sklearn_metrics(scores, labels, threshold, weights=None) -> dict[str, float]:
    called = scores >= threshold
    keywords = {"sample_weight": weights}
    return {
        "AUROC": sk.roc_auc_score(labels, scores, **keywords),
        "AUPR": sk.average_precision_score(labels, scores, **keywords),
        "F1": sk.f1_score(labels, called, zero_division=0, **keywords),
        "accuracy": sk.accuracy_score(labels, called, **keywords),
        "precision": sk.precision_score(labels, called, zero_division=0, **keywords),
        "sensitivity": sk.recall_score(labels, called, **keywords),
        "specificity": sk.recall_score(labels, called, pos_label=0, **keywords),
    }


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(4, 60), levels=st.integers(1, 40))
def test_metrics_are_those_of_scikit_learn(seed: int, size: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, size - 2)]
    scores = rng.integers(0, levels, size) * 7.5 - 20  # many ties, far outside [0, 1]
    threshold = float(rng.choice(scores)) + rng.choice([0.0, 0.1, 1e6])
    expected = sklearn_metrics(scores, labels, threshold)
    assert image_metrics(scores, labels, threshold) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(6, 40))
def test_weights_are_those_of_scikit_learn(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.r_[False, True, rng.integers(0, 2, size - 2).astype(bool)]
    scores = rng.integers(0, 8, size).astype(float)
    weights = rng.integers(0, 4, (3, size))
    weights[:, :2] += 1  # each draw keeps both classes
    computed = weighted_metrics(scores, labels, weights, threshold=4.0)
    for row in range(3):
        expected = sklearn_metrics(scores, labels, 4.0, weights[row])
        assert {name: value[row] for name, value in computed.items()} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("label", "defined", "missing"),
    [(0, {"accuracy", "specificity"}, "abnormal"), (1, {"accuracy", "F1", "precision", "sensitivity"}, "normal")],
)
def test_a_missing_class_makes_nan_with_a_reason(label, defined, missing, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        computed = image_metrics([0.1, 0.9, 0.4], [label] * 3, threshold=0.5)
    assert {name for name, value in computed.items() if not math.isnan(value)} == defined
    assert f"no image is {missing}" in caplog.text
    assert "AUROC" in caplog.text


def test_a_draw_without_a_class_is_nan_and_the_others_are_not() -> None:
    weights = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    computed = weighted_metrics(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True]), weights, 2.5)
    assert np.isnan(computed["AUROC"]).tolist() == [False, True, True]
    assert np.isnan(computed["sensitivity"]).tolist() == [False, True, False]
    assert np.isnan(computed["specificity"]).tolist() == [False, False, True]


def test_equal_scores_are_chance_and_said_so(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        computed = image_metrics([3.0] * 6, [0, 0, 1, 1, 1, 1])
    assert computed == pytest.approx({"AUROC": 0.5, "AUPR": 4 / 6})
    assert "scores are equal" in caplog.text


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        ([0.1, float("nan")], [0, 1], "positions 1"),
        ([0.1, float("inf")], [0, 1], "NaN or infinite"),
        ([0.1, 0.2], [0, 2], r"\['2'\]"),
        ([0.1, 0.2], [0], "one label a score"),
        ([], [], "at least one"),
    ],
)
def test_unusable_input_is_refused(scores, labels, said) -> None:
    with pytest.raises(ValueError, match=said):
        image_metrics(scores, labels)
