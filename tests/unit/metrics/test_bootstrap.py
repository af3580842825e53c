"""Intervals over patients: against a plain bootstrap, in width, and in coverage."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from anomalib_cxr.metrics import Run, bootstrap_difference, bootstrap_intervals, image_metrics
from anomalib_cxr.metrics.bootstrap import patient_weights, percentile_interval


def drawn(patients: int, images: int, seed: int, effect: float = 1.0) -> Run:
    """Patients with several like images each."""
    rng = np.random.default_rng(seed)
    sick = np.arange(patients) % 2
    scores = np.repeat(effect * sick + rng.normal(size=patients), images)
    return Run(scores, np.repeat(sick, images), np.repeat([f"p{i}" for i in range(patients)], images).tolist(), 0.5)


def test_the_interval_is_that_of_drawing_patients_by_hand() -> None:
    run = drawn(40, 3, seed=1)
    scores, labels = np.asarray(run.scores), np.asarray(run.labels)
    by_patient = {name: np.flatnonzero(np.array(run.patients) == name) for name in dict.fromkeys(run.patients)}
    rng = np.random.default_rng(7)
    aurocs, f1s = [], []
    for _ in range(3000):
        names = rng.choice(list(by_patient), size=len(by_patient))
        index = np.concatenate([by_patient[name] for name in names])
        sick, well = scores[index][labels[index] == 1], scores[index][labels[index] == 0]
        aurocs.append((sick[:, None] > well).mean() + 0.5 * (sick[:, None] == well).mean())
        f1s.append(2 * (sick >= 0.5).sum() / (len(sick) + (sick >= 0.5).sum() + (well >= 0.5).sum()))
    computed = bootstrap_intervals(run, draws=3000)
    for name, values in (("AUROC", aurocs), ("F1", f1s)):
        assert computed[name][:2] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.012)


def test_like_images_of_one_patient_do_not_narrow_the_interval() -> None:
    one, many = drawn(40, 1, seed=2), drawn(40, 10, seed=2)
    taken_apart = many._replace(patients=list(range(400)))
    widths = [np.diff(bootstrap_intervals(run, draws=500)["AUROC"][:2])[0] for run in (one, many, taken_apart)]
    assert widths[0] == pytest.approx(widths[1], rel=1e-9)
    assert widths[2] < 0.5 * widths[1]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth = roc_auc_score(
        np.repeat([0, 1], 20000), np.random.default_rng(0).normal(size=40000) + np.repeat([0, 1], 20000)
    )
    inside = 0
    for seed in range(150):
        low, high, _ = bootstrap_intervals(drawn(80, 2, seed=100 + seed), draws=300, level=0.9)["AUROC"]
        inside += low <= truth <= high
    assert 0.82 <= inside / 150 <= 0.96  # 0.9 ± 2.5 standard errors, a little lower as percentile intervals are


def test_several_runs_are_averaged_draw_by_draw() -> None:
    same = drawn(30, 1, seed=3)
    assert bootstrap_intervals([same, same], draws=200) == bootstrap_intervals(same, draws=200)
    folds = [drawn(30, 1, seed=s)._replace(patients=[f"{s}-{i}" for i in range(30)]) for s in range(4)]
    widths = [np.diff(bootstrap_intervals(runs, draws=1500)["AUROC"][:2])[0] for runs in (*folds, folds)]
    # Folds of different patients are independent: the variance of their mean is that of each over 16, summed.
    assert widths[4] == pytest.approx(np.sqrt(np.sum(np.square(widths[:4]))) / 4, rel=0.15)
    intervals = bootstrap_intervals(folds, draws=200)
    mean = np.mean([image_metrics(run.scores, run.labels, 0.5)["AUROC"] for run in folds])
    assert intervals["AUROC"].low < mean < intervals["AUROC"].high


def test_differences_are_paired() -> None:
    a = drawn(60, 1, seed=4)
    noise = np.random.default_rng(5).normal(size=60)
    b = a._replace(scores=np.asarray(a.scores) + 0.05 * noise)
    paired = bootstrap_difference(a, b, draws=400)["AUROC"]
    alone = bootstrap_intervals(a, draws=400)["AUROC"]
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)
    assert bootstrap_difference(a, a, draws=50)["F1"] == (0, 0, 0)


def test_blocks_of_draws_are_the_draws(monkeypatch) -> None:
    run = drawn(30, 2, seed=6)
    whole = bootstrap_intervals(run, draws=100)
    monkeypatch.setattr("anomalib_cxr.metrics.bootstrap._NUMBERS_AT_ONCE", 30 * 7)
    assert bootstrap_intervals(run, draws=100) == whole
    rows = np.concatenate(list(patient_weights(np.arange(30), 30, 100, 0)))
    assert rows.shape == (100, 30)
    assert (rows.sum(axis=1) == 30).all()


def test_draws_without_a_class_are_left_out_and_counted() -> None:
    run = Run([1.0, 2.0, 3.0, 4.0], [0, 0, 0, 1], ["a", "b", "c", "d"])
    interval = bootstrap_intervals(run, draws=400)["AUROC"]
    assert 60 < interval.undefined < 200  # (3/4)^4 = 0.32 of the draws miss patient d
    assert interval[:2] == (1, 1)
    nothing = bootstrap_intervals(Run([1.0, 2.0], [0, 0], ["a", "b"]), draws=20)["AUROC"]
    assert np.isnan(nothing.low)
    assert nothing.undefined == 20


@pytest.mark.parametrize(
    ("runs", "keywords", "said"),
    [
        ([], {}, "no run"),
        (Run([1.0, 2.0], [0, 1], ["a"]), {}, "one patient an image"),
        (Run([1.0, 2.0], [0, 1], ["a", "b"]), {"draws": 0}, "draws"),
        (Run([1.0, 2.0], [0, 1], ["a", "b"]), {"level": 95}, "level"),
        ([Run([1.0], [0], ["a"]), Run([1.0], [0], ["a"], 1.0)], {}, "threshold"),
    ],
)
def test_unusable_arguments_are_refused(runs, keywords, said) -> None:
    with pytest.raises(ValueError, match=said):
        bootstrap_intervals(runs, **{"draws": 5} | keywords)


def test_the_level_is_the_share_of_draws_inside() -> None:
    low, high, _ = percentile_interval(np.arange(1001.0), 0.9)
    assert (low, high) == pytest.approx((50, 950))
