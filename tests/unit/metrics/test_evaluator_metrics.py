"""Metric classes in Anomalib's Evaluator, against scikit-learn, and from YAML."""

import math

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from jsonargparse import ArgumentParser
from sklearn import metrics as sk

import anomalib_cxr.metrics as ours


def batch(scores, labels, decisions=None) -> ImageBatch:
    keywords = {} if decisions is None else {"pred_label": torch.tensor(decisions, dtype=torch.bool)}
    return ImageBatch(
        image=torch.zeros(len(scores), 3, 2, 2),
        pred_score=torch.tensor(scores),
        gt_label=torch.tensor(labels),
        image_path=[f"film_{i}.png" for i in range(len(scores))],
        **keywords,
    )


def computed(metric, *batches):
    for one in batches:
        metric.update(one)
    return float(metric.compute())


@pytest.fixture
def halves():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = (30 + 20 * labels + 15 * rng.normal(size=60)).astype(np.float32)  # a sigmoid makes all of these 1
    decisions = scores > 42
    return (
        labels,
        scores,
        decisions,
        [
            batch(scores[part].tolist(), labels[part].tolist(), decisions[part].tolist())
            for part in (slice(0, 25), slice(25, 60))
        ],
    )


def test_metrics_are_those_of_scikit_learn(halves) -> None:
    labels, scores, decisions, batches = halves
    expected = {
        ours.Accuracy: sk.accuracy_score(labels, decisions),
        ours.Precision: sk.precision_score(labels, decisions),
        ours.Sensitivity: sk.recall_score(labels, decisions),
        ours.Specificity: sk.recall_score(labels, decisions, pos_label=0),
        ours.F1Score: sk.f1_score(labels, decisions),
        ours.AUROC: sk.roc_auc_score(labels, scores),
        ours.AUPR: sk.average_precision_score(labels, scores),
    }
    for cls, value in expected.items():
        assert computed(cls(), *batches) == pytest.approx(value, abs=1e-6), cls.__name__
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    at = computed(ours.SensitivityAtSpecificity(min_specificity=0.8), *batches)
    assert at == pytest.approx(tpr[1 - fpr >= 0.8].max(), abs=1e-6)
    at = computed(ours.SpecificityAtSensitivity(min_sensitivity=0.9), *batches)
    assert at == pytest.approx((1 - fpr)[tpr >= 0.9].max(), abs=1e-6)


@pytest.mark.parametrize(
    ("label", "undefined"),
    [
        (0, ["AUROC", "AUPR", "SensitivityAtSpecificity", "Sensitivity", "Precision", "F1Score"]),
        (1, ["AUROC", "AUPR", "SensitivityAtSpecificity", "Specificity"]),
    ],
)
def test_a_missing_class_makes_nan_with_a_reason(label, undefined, caplog) -> None:
    for name in ("Accuracy", *undefined):
        arguments = {"min_specificity": 0.5} if name == "SensitivityAtSpecificity" else {}
        metric = getattr(ours, name)(prefix="image_", **arguments)
        caplog.clear()
        value = computed(metric, batch([0.2, 0.7], [label, label], [0, 1]))
        assert math.isnan(value) == (name in undefined), name
        if name in undefined:
            assert f"image_{name} is not defined (NaN): no image is {('abnormal', 'normal')[label]}" in caplog.text


def test_nan_scores_are_refused_and_the_images_named() -> None:
    with pytest.raises(ValueError, match=r"1 of 3 values of pred_score are NaN or infinite, at the images film_1\.png"):
        ours.AUROC().update(batch([0.2, float("nan"), 0.4], [0, 1, 1]))


def test_strict_false_without_anything_to_see_is_none() -> None:
    metric = ours.Sensitivity(strict=False)
    metric.update(batch([0.2, 0.4], [0, 1]))  # no decisions
    assert metric.compute() is None
    assert ours.AUROC(strict=False).compute() is None


def test_names_work_in_an_evaluator_from_yaml(tmp_path, halves) -> None:
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(Evaluator, "evaluator")
    (tmp_path / "config.yaml").write_text(
        """
evaluator:
  class_path: anomalib.metrics.Evaluator
  init_args:
    test_metrics:
      - class_path: anomalib_cxr.metrics.Sensitivity
        init_args: {prefix: image_}
      - class_path: anomalib_cxr.metrics.AUROC
        init_args: {prefix: image_, fields: [pred_score, gt_label]}
      - class_path: anomalib_cxr.metrics.SensitivityAtSpecificity
        init_args: {min_specificity: 0.8, prefix: image_}
"""
    )
    parsed = parser.parse_args(["--config", str(tmp_path / "config.yaml")])
    evaluator = parser.instantiate_classes(parsed).evaluator
    _, _, _, batches = halves
    for one in batches:
        evaluator.on_test_batch_end(None, None, None, one, 0)
    assert [metric.name for metric in evaluator.test_metrics] == [
        "image_Sensitivity", "image_AUROC", "image_SensitivityAtSpecificity"
    ]  # fmt: skip
    assert all(0.3 < float(metric.compute()) < 1 for metric in evaluator.test_metrics)
