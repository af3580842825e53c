"""The table, from files of predictions, against scikit-learn and the statistics module."""

import json
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from anomalib_cxr.metrics import write_predictions
from anomalib_cxr.metrics.thresholds import check_rule, choose_threshold
from anomalib_cxr.pipelines.cross_validation.plan import CrossValidationJob
from anomalib_cxr.pipelines.cross_validation.table import (
    evaluate_jobs,
    make_tables,
    to_markdown,
)


def predictions(seed: int, names: str = "", effect: float = 1.5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    abnormal = np.arange(40) % 2
    return pd.DataFrame(
        {
            "image": [f"{names}{i}.png" for i in range(40)],
            "patient_id": [f"{names}{i // 2}" for i in range(40)],
            "label": np.where(abnormal, "abnormal", "normal"),
            "findings": "",
            "raw_score": 100 + rng.normal(size=40) + effect * abnormal,
            "score": 0.5,
            "p_value": np.nan,
            "decision": "normal",
            "split_hash": "x",
        }
    )


def finished(results: Path, model: str, fold: int | None, seed: int = 0, last: bool = False, names: str = "test"):
    job = CrossValidationJob("own", model, fold, seed, {})
    folder = results / job.name
    number = hash_of(model, fold, seed)
    for place, offset in ((folder, 0), (folder / "last", 1000))[: 1 + last]:
        write_predictions(place / "predictions.csv", predictions(number + offset, f"{names}{fold}-"))
        write_predictions(place / "predictions_val.csv", predictions(number + offset + 1, "val"))
    (folder / "done.json").write_text(json.dumps({"fit_seconds": 60.0}))
    return job


def hash_of(*parts) -> int:
    return sum(ord(letter) * 7**place for place, letter in enumerate(str(parts)[:9])) % 10**6


def test_figures_are_means_over_jobs_at_the_validation_threshold(tmp_path) -> None:
    jobs = [finished(tmp_path, "a", fold) for fold in range(3)]
    evaluated, failed = evaluate_jobs(jobs, tmp_path)
    assert not failed
    single, table = make_tables(evaluated, {("own", "a"): 5}, draws=300)
    expected: dict[str, list[float]] = {"AUROC": [], "AUPR": [], "F1": [], "accuracy": [], "sensitivity": []}
    for job in jobs:
        test, val = (pd.read_csv(tmp_path / job.name / f) for f in ("predictions.csv", "predictions_val.csv"))
        truth, scores = test["label"] == "abnormal", test["raw_score"]
        f1 = {t: sk.f1_score(val["label"] == "abnormal", val["raw_score"] >= t) for t in val["raw_score"]}
        called = scores >= max(f1, key=lambda t: (f1[t], t))
        expected["AUROC"].append(sk.roc_auc_score(truth, scores))
        expected["AUPR"].append(sk.average_precision_score(truth, scores))
        expected["F1"].append(sk.f1_score(truth, called))
        expected["accuracy"].append(sk.accuracy_score(truth, called))
        expected["sensitivity"].append(sk.recall_score(truth, called))
    (row,) = table.to_dict("records")
    for name, values in expected.items():
        assert single[name].tolist() == pytest.approx(values)
        assert row[name] == pytest.approx(statistics.mean(values))
        assert row[f"{name}_sd"] == pytest.approx(statistics.stdev(values))
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert (row["jobs"], row["planned"], row["fit_seconds"]) == (3, 5, 60)
    assert "| own | a | last | 3/5 | 1.0 |" in to_markdown(table, "best_f1", 300, 0.95)


def test_a_model_that_chose_by_labels_has_two_rows(tmp_path) -> None:
    jobs = [finished(tmp_path, "ours", None, seed, last=True) for seed in (0, 1)]
    jobs.append(finished(tmp_path, "padim", None))
    evaluated, _ = evaluate_jobs(jobs, tmp_path)
    _, table = make_tables(evaluated, {("own", "ours"): 2, ("own", "padim"): 1}, draws=20)
    assert table[["model", "checkpoint", "jobs"]].to_numpy().tolist() == [
        ["ours", "best by validation labels", 2], ["ours", "last", 2], ["padim", "last", 1]
    ]  # fmt: skip
    assert table["AUROC"].nunique() == 3
    assert table["AUROC_sd"].isna().tolist() == [False, False, True]


def test_predictions_of_different_images_are_refused_and_named(tmp_path) -> None:
    jobs = [finished(tmp_path, "a", 0), finished(tmp_path, "b", 0, names="other"), finished(tmp_path, "c", 1)]
    evaluated, failed = evaluate_jobs(jobs, tmp_path)
    assert [one.job.model for one in evaluated] == ["a", "c"]  # another fold has other images, rightly
    assert list(failed) == ["own/b/fold_0_seed_0"]
    assert "only in own/a/fold_0_seed_0, such as test0-0.png" in failed["own/b/fold_0_seed_0"]


def test_a_job_that_cannot_be_evaluated_is_reported(tmp_path) -> None:
    jobs = [finished(tmp_path, "a", None), finished(tmp_path, "b", None)]
    path = tmp_path / "own/b/seed_0/predictions_val.csv"
    write_predictions(path, predictions(0).assign(label="normal"))
    evaluated, failed = evaluate_jobs(jobs, tmp_path)
    assert len(evaluated) == 1
    assert "none of the 40 images is abnormal" in failed["own/b/seed_0"]
    assert len(evaluate_jobs(jobs, tmp_path, {"false_positive_rate": 0.1})[0]) == 2  # needs normal images alone


def test_rules_choose_what_they_say() -> None:
    validation = predictions(3)
    scores, labels = validation["raw_score"], validation["label"] == "abnormal"
    assert (scores[labels] >= choose_threshold(scores, labels, {"sensitivity": 0.9})).mean() == 0.9
    alarms = scores[~labels] >= choose_threshold(scores, labels, {"false_positive_rate": 0.1})
    assert alarms.sum() == 1  # 0.1 · 21 − 1
    assert choose_threshold(scores, labels, "mid_range") == (scores.min() + scores.max()) / 2


@pytest.mark.parametrize(
    "rule", ["youden", {"sensitivity": 1.5}, {"specificity": 0.9}, {}, {"sensitivity": 0.9, "x": 1}]
)
def test_unknown_rules_are_refused(rule) -> None:
    with pytest.raises(ValueError, match="threshold must be best_f1, mid_range, or one of"):
        check_rule(rule)


def test_pixel_metrics_of_the_models_own_evaluator_are_carried_over(tmp_path) -> None:
    jobs = [finished(tmp_path, "masked", None, seed) for seed in range(3)] + [finished(tmp_path, "plain", None)]
    measured = [0.91, 0.87, 0.80]
    for job, value in zip(jobs, measured, strict=False):
        content = {"image_AUROC": 0.5, "pixel_AUROC": value, "pixel_AUPRO": value / 2}
        (tmp_path / job.name / "test_metrics.json").write_text(json.dumps(content))
    evaluated, _ = evaluate_jobs(jobs, tmp_path)
    single, table = make_tables(evaluated, {("own", "masked"): 3, ("own", "plain"): 1}, draws=50)
    masked, plain = table.set_index("model").loc[["masked", "plain"]].to_dict("records")
    assert masked["pixel_AUROC"] == pytest.approx(statistics.mean(measured))
    assert masked["pixel_AUPRO_sd"] == pytest.approx(statistics.stdev(measured) / 2)
    assert np.isnan(plain["pixel_AUROC"])
    assert sorted(single["pixel_AUROC"].dropna()) == sorted(measured)
    assert "image_AUROC" not in table.columns, "the AUROC of the table is made from predictions"
    head, _, first, second = to_markdown(table, "best_f1", 50, 0.95).splitlines()[:4]
    shown = dict(zip(*(line.strip("| ").split(" | ") for line in (head, first)), strict=True))
    assert shown["pixel AUROC"] == f"{statistics.mean(measured):.3f} ± {statistics.stdev(measured):.3f}"
    assert second.rstrip(" |").endswith(")"), "no figure where none was measured"


def test_a_threshold_chosen_on_test_images_is_refused(tmp_path) -> None:
    job = finished(tmp_path, "a", None)
    folder = tmp_path / job.name
    (folder / "predictions_val.csv").write_bytes((folder / "predictions.csv").read_bytes())
    evaluated, failed = evaluate_jobs([job], tmp_path)
    assert not evaluated
    assert "40 of the validation images are test images too" in failed[job.name]


def test_the_time_of_a_job_that_was_cut_off_is_not_shown(tmp_path) -> None:
    jobs = [finished(tmp_path, "a", None, seed) for seed in (0, 1)]
    (tmp_path / jobs[1].name / "done.json").write_text(json.dumps({"fit_seconds": None}))
    evaluated, _ = evaluate_jobs(jobs, tmp_path)
    _, table = make_tables(evaluated, {("own", "a"): 2}, draws=50)
    assert np.isnan(table["fit_seconds"].iloc[0])
    assert to_markdown(table, "best_f1", 50, 0.95).splitlines()[2].split(" | ")[4] == "–"


def test_costs_are_shown_in_the_mean_where_jobs_noted_them(tmp_path) -> None:
    jobs = [finished(tmp_path, "noted", None, seed) for seed in (0, 1)] + [finished(tmp_path, "old", None)]
    for job, milliseconds, gib in zip(jobs, (10.0, 30.0), (1.5, None), strict=False):
        content = {"fit_seconds": 60.0, "image_ms": milliseconds, "peak_gib": gib}
        (tmp_path / job.name / "done.json").write_text(json.dumps(content))
    _, table = make_tables(evaluate_jobs(jobs, tmp_path)[0], {("own", "noted"): 2, ("own", "old"): 1}, draws=50)
    assert table["image_ms"].tolist() == pytest.approx([20, np.nan], nan_ok=True)
    assert table["peak_gib"].isna().all(), "one job does not know, so their mean is not known"
    head, _, first, second = to_markdown(table, "best_f1", 50, 0.95).splitlines()[:4]
    shown = [
        dict(zip(*(line.strip("| ").split(" | ") for line in (head, row)), strict=True)) for row in (first, second)
    ]
    assert [row["ms an image"] for row in shown] == ["20", "–"]
    assert "peak GiB" not in shown[0]
    assert "Time for an image" in to_markdown(table, "best_f1", 50, 0.95)


def rewritten(results: Path, job: CrossValidationJob, **columns: object) -> None:
    path = results / job.name / "predictions.csv"
    table = pd.read_csv(path, dtype={"split_hash": str, "patient_id": str}, keep_default_na=False)
    write_predictions(path, table.assign(p_value=np.nan, **columns))


def test_draws_left_out_of_an_interval_are_counted(tmp_path) -> None:
    jobs = [finished(tmp_path, "few", None), finished(tmp_path, "many", None)]
    for job in jobs:  # one patient of 20 is abnormal: (19/20)^20 of the draws miss it
        rewritten(tmp_path, job, label=np.where(np.arange(40) < 2, "abnormal", "normal"))
    evaluated, _ = evaluate_jobs(jobs, tmp_path)
    _, table = make_tables(evaluated, {("own", "few"): 1, ("own", "many"): 1}, draws=1000)
    row = table.iloc[0]
    assert row["AUROC_undefined"] == pytest.approx(1000 * (19 / 20) ** 20, abs=60)
    assert row["AUROC_undefined"] == row["sensitivity_undefined"]
    assert row["specificity_undefined"] == row["accuracy_undefined"] == 0
    text = to_markdown(table, "best_f1", 1000, 0.95)
    assert f", {row['AUROC_undefined']} draws left out)" in text
    assert "are left out of its interval and counted" in text


def test_a_class_that_no_test_image_has_leaves_dashes(tmp_path) -> None:
    jobs = [finished(tmp_path, "a", None, seed) for seed in (0, 1)]
    for job in jobs:
        rewritten(tmp_path, job, label="normal")
    evaluated, failed = evaluate_jobs(jobs, tmp_path)
    assert not failed
    _, table = make_tables(evaluated, {("own", "a"): 2}, draws=50)
    text = to_markdown(table, "best_f1", 50, 0.95)
    cells = text.splitlines()[2].strip("| ").split(" | ")
    assert cells[5:8] == ["–", "–", "–"]  # AUROC, AUPR, F1
    assert cells[8].startswith(f"{table['accuracy'][0]:.3f} ± ")
    assert "nan" not in text
    assert "where a test holds no image of such a label" in text


def test_images_without_label_are_not_taken_for_normal_ones(tmp_path) -> None:
    jobs = [finished(tmp_path, "a", None), finished(tmp_path, "b", None)]
    rewritten(tmp_path, jobs[1], label=["", *["normal", "abnormal"] * 19, "abnormal"])
    rewritten(tmp_path, jobs[0], label=["", *["normal", "abnormal"] * 19, "abnormal"])
    evaluated, failed = evaluate_jobs(jobs, tmp_path)
    assert not evaluated
    assert failed["own/a/seed_0"] == "1 of 40 test images have no label, the first is testNone-0.png."


def test_a_broken_note_of_pixel_metrics_fails_no_job(tmp_path) -> None:
    job = finished(tmp_path, "a", None)
    (tmp_path / job.name / "test_metrics.json").write_text('{"pixel_AUROC": 0.')
    evaluated, failed = evaluate_jobs([job], tmp_path)
    assert len(evaluated) == 1
    assert not failed
