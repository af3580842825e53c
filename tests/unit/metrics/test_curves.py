"""ROC and precision-recall curves and their bands, against scikit-learn and plain loops."""

import numpy as np
import pytest
from sklearn import metrics as sk

from anomalib_cxr.metrics import Run, image_metrics, precision_recall_band, roc_band

RNG = np.random.default_rng(3)
LABELS = np.r_[np.zeros(40), np.ones(30)].astype(int)
SCORES = np.round(RNG.normal(LABELS, 1.0), 1)  # rounded: many ties
PATIENTS = [f"P{i // 2}" for i in range(70)]
RUN = Run(SCORES, LABELS, PATIENTS)


def sensitivity_at(rate: float, weights: np.ndarray) -> float:
    """Highest point of scikit-learn's ROC curve at a false-positive rate, on straight lines."""
    x, y, _ = sk.roc_curve(LABELS, SCORES, sample_weight=weights, drop_intermediate=False)
    left = np.flatnonzero(x <= rate + 1e-12)[-1]
    if left == len(x) - 1:
        return y[-1]
    return y[left] + (y[left + 1] - y[left]) * max(0.0, rate - x[left]) / (x[left + 1] - x[left])


def precision_at(recall: float, weights: np.ndarray) -> float:
    """Precision at the highest threshold that reaches a recall (any recall above 0 for 0), by trying all."""
    total = weights[LABELS == 1].sum()
    for threshold in sorted(set(SCORES), reverse=True):
        called = weights * (threshold <= SCORES)
        found = called[LABELS == 1].sum()
        if found > 0 and found / total >= recall - 1e-12:
            return found / called.sum()
    raise AssertionError


@pytest.mark.parametrize(
    ("band_of", "value_at"), [(roc_band, sensitivity_at), (precision_recall_band, precision_at)], ids=["roc", "pr"]
)
def test_curve_and_band_are_those_of_a_plain_bootstrap(band_of, value_at) -> None:
    band = band_of(RUN, draws=150, level=0.9, seed=5, points=21)
    ones = np.ones(len(LABELS))
    assert band.y == pytest.approx([value_at(x, ones) for x in band.x], abs=1e-9)
    drawn = []
    for counts in np.random.default_rng(5).multinomial(35, np.full(35, 1 / 35), size=150):
        weights = counts[np.arange(70) // 2].astype(float)
        drawn.append([value_at(x, weights) for x in band.x])
    assert band.low == pytest.approx(np.quantile(drawn, 0.05, axis=0), abs=1e-9)
    assert band.high == pytest.approx(np.quantile(drawn, 0.95, axis=0), abs=1e-9)


def test_areas_are_auroc_and_aupr() -> None:
    metrics = image_metrics(SCORES, LABELS)
    roc = roc_band(RUN, draws=1, points=40 * 100 + 1)  # a grid that holds every false-positive rate
    assert (roc.y[1:] + roc.y[:-1]).mean() / 2 == pytest.approx(metrics["AUROC"], abs=2e-3)
    steps = precision_recall_band(RUN, draws=1, points=30 * 100 + 1)
    assert steps.y[1:].mean() == pytest.approx(metrics["AUPR"], abs=1e-9)


def test_equal_scores_give_the_diagonal() -> None:
    equal = Run(np.zeros(70), LABELS, PATIENTS)
    roc = roc_band(equal, draws=20)
    assert roc.y == pytest.approx(roc.x)
    assert roc.low == pytest.approx(roc.x)
    assert precision_recall_band(equal, draws=20).y == pytest.approx(np.full(201, 3 / 7))


def test_draws_of_one_class_are_left_out_and_a_missing_class_is_refused() -> None:
    few = Run([0.1, 0.9], [0, 1], ["a", "b"])
    band = roc_band(few, draws=50)
    assert np.isfinite(band.low).all()
    with pytest.raises(ValueError, match="none of the 2 images is normal"):
        roc_band(Run([0.1, 0.9], [1, 1], ["a", "b"]))
    with pytest.raises(ValueError, match="one patient an image"):
        roc_band(Run([0.1, 0.9], [0, 1], ["a"]))
    with pytest.raises(ValueError, match="draws >= 1"):
        roc_band(few, draws=0)
