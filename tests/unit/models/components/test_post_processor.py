"""Ranks survive normalisation; the pixel threshold is a quantile of normal maps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from sklearn.metrics import f1_score, roc_auc_score

from anomalib_cxr.data import RadiographBatch
from anomalib_cxr.metrics import FindingAUROC, conformal_p_values
from anomalib_cxr.models import AnatPaste
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor

TRAINER = SimpleNamespace(world_size=1)


def _fitted(scores: torch.Tensor, labels: torch.Tensor, maps: torch.Tensor, **kwargs) -> RankPreservingPostProcessor:
    post = RankPreservingPostProcessor(**kwargs)
    for part in (slice(0, len(scores) // 2), slice(len(scores) // 2, None)):
        batch = ImageBatch(
            image=torch.zeros(len(scores[part]), 3, *maps.shape[-2:]),
            gt_label=labels[part],
            pred_score=scores[part],
            anomaly_map=maps[part],
        )
        post.on_validation_batch_end(TRAINER, None, batch)
    post.on_validation_epoch_end(TRAINER, None)
    return post


@pytest.fixture
def validation() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2 == 1
    scores = torch.randn(60, generator=generator) + labels * 1.5
    maps = torch.randn(60, 1, 40, 40, generator=generator) + labels[:, None, None, None] * 5.0
    return scores, labels, maps


def test_auroc_equals_that_of_raw_scores_far_outside_the_validation_range(validation) -> None:
    post = _fitted(*validation)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    raw = (rng.standard_normal(400) * 60 + labels * 30).astype(np.float32)  # 20 times the validation's range
    out = post(InferenceBatch(pred_score=torch.tensor(raw), anomaly_map=torch.zeros(400, 1, 2, 2))).pred_score
    assert roc_auc_score(labels, out.numpy()) == roc_auc_score(labels, raw)
    assert 0 < out.min() < 0.05
    assert 0.95 < out.max() < 1
    assert np.array_equal(np.argsort(out.numpy(), kind="stable"), np.argsort(raw, kind="stable"))


@pytest.mark.parametrize("case", ["10,000 spreads away", "an outlier stretched the range"])
def test_the_evaluators_auroc_is_that_of_raw_scores_where_normalised_ones_tie(validation, case: str) -> None:
    rng, (scores, gt, maps) = np.random.default_rng(0), validation
    labels = np.arange(400) % 2
    raw = rng.standard_normal(400) + labels
    if case.startswith("an outlier"):
        scores = scores.clone()
        scores[0] = 1e9
    else:
        raw += 10_000 * float(scores.max() - scores.min())
    raw = raw.astype(np.float32)
    post = _fitted(scores, gt, maps)
    (metric,) = [one for one in AnatPaste.configure_evaluator().test_metrics if one.name == "image_AUROC"]
    finding = FindingAUROC("nodule")
    for part in np.split(np.arange(400), 4):
        findings = ["nodule" if label else "" for label in labels[part]]
        shown = RadiographBatch(
            image=torch.zeros(100, 3, 8, 8),
            gt_label=torch.tensor(labels[part]),
            pred_score=torch.tensor(raw[part]),
            findings=findings,
        )
        post.post_process_batch(shown)
        metric.update(shown)
        finding.update(shown)
    expected = roc_auc_score(labels, raw)
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)
    assert float(finding.compute()) == pytest.approx(expected, abs=1e-6)
    normalised = post(InferenceBatch(pred_score=torch.tensor(raw), anomaly_map=torch.zeros(400, 1, 2, 2))).pred_score
    assert abs(roc_auc_score(labels, normalised.numpy()) - expected) > 0.01  # what it would have been


def test_half_is_the_middle_of_the_validation_scores_where_asked(validation) -> None:
    scores, labels, maps = validation
    post = _fitted(scores, labels, maps, threshold_rule="mid_range")
    out = post(InferenceBatch(pred_score=scores, anomaly_map=maps))
    assert torch.equal(out.pred_score > 0.5, scores > (scores.min() + scores.max()) / 2)
    assert torch.equal(out.pred_label.bool(), out.pred_score > 0.5)
    with pytest.raises(ValueError, match="threshold_rule must be one of"):
        RankPreservingPostProcessor(threshold_rule="best")


def test_half_is_the_best_f1_threshold(validation) -> None:
    scores, labels, maps = validation
    post = _fitted(scores, labels, maps)
    out = post(InferenceBatch(pred_score=scores, anomaly_map=maps))
    best = max(f1_score(labels, scores >= cut) for cut in scores)
    # The threshold is itself one of the scores, and an image at it is abnormal.
    assert f1_score(labels, out.pred_label) == pytest.approx(best)
    assert torch.equal(out.pred_label.bool(), out.pred_score >= 0.5)
    assert (scores == post.image_threshold).any()


@pytest.mark.parametrize("target", [0.05, 0.5, 0.9, 0.99])
def test_a_target_sensitivity_is_just_reached(validation, target: float) -> None:
    scores, labels, maps = validation
    post = _fitted(scores, labels, maps, threshold_rule="sensitivity", threshold_target=target)
    called = post(InferenceBatch(pred_score=scores, anomaly_map=maps)).pred_label.bool()
    found = int((called & labels).sum())
    assert found == next(n for n in range(1, 31) if n / 30 >= target), "the fewest that are enough"
    assert not called[~labels & (scores < scores[labels & called].min())].any()


@pytest.mark.parametrize("rate", [0.04, 0.1, 0.5])
def test_a_target_false_positive_rate_comes_from_normal_images_alone(validation, rate: float) -> None:
    scores, labels, maps = validation
    post = _fitted(scores, labels, maps, threshold_rule="false_positive_rate", threshold_target=rate)
    called = post(InferenceBatch(pred_score=scores, anomaly_map=maps)).pred_label.bool()
    assert called.tolist() == (conformal_p_values(scores[~labels], scores) <= rate + 1e-9).tolist()
    other = torch.where(labels, scores + 7, scores)
    again = _fitted(other, labels, maps, threshold_rule="false_positive_rate", threshold_target=rate)
    kept = again(InferenceBatch(pred_score=scores, anomaly_map=maps)).pred_label.bool()
    assert torch.equal(kept[~labels], called[~labels])


def test_targets_that_mean_nothing_are_refused(validation) -> None:
    for rule, target in (("sensitivity", None), ("false_positive_rate", 1.5)):
        with pytest.raises(ValueError, match=f"threshold_rule={rule} needs a threshold_target between 0 and 1"):
            RankPreservingPostProcessor(threshold_rule=rule, threshold_target=target)
    with pytest.raises(ValueError, match="has no meaning for threshold_rule=best_f1"):
        RankPreservingPostProcessor(threshold_target=0.9)
    with pytest.raises(ValueError, match="needs scores of at least 99 normal images, there are 30"):
        _fitted(*validation, threshold_rule="false_positive_rate", threshold_target=0.01)


@pytest.mark.parametrize("quantile", [0.9, 0.98])
def test_normal_maps_are_covered_by_the_stated_share(validation, quantile: float) -> None:
    scores, labels, maps = validation
    post = _fitted(scores, labels, maps, pixel_quantile=quantile)
    mask = post(InferenceBatch(pred_score=scores, anomaly_map=maps)).pred_mask
    assert mask[~labels].float().mean().item() == pytest.approx(1 - quantile, abs=0.001)
    assert mask[labels].float().mean().item() > 0.9


def test_batch_and_exported_path_agree(validation) -> None:
    scores, labels, maps = validation
    post = _fitted(scores, labels, maps)
    batch = ImageBatch(image=torch.zeros(60, 3, 40, 40), pred_score=scores.clone(), anomaly_map=maps.clone())
    post.post_process_batch(batch)
    out = post(InferenceBatch(pred_score=scores, anomaly_map=maps))
    assert torch.equal(batch.pred_score, out.pred_score)
    assert torch.equal(torch.as_tensor(batch.anomaly_map), out.anomaly_map[:, 0])
    assert torch.equal(torch.as_tensor(batch.pred_mask).bool(), out.pred_mask[:, 0].bool())


def test_state_survives_a_checkpoint(validation) -> None:
    post = _fitted(*validation, pixel_quantile=0.9)
    fresh = RankPreservingPostProcessor()
    fresh.load_checkpoint_config(post.checkpoint_config())
    fresh.load_state_dict(post.state_dict())
    predictions = InferenceBatch(pred_score=validation[0], anomaly_map=validation[2])
    assert torch.equal(fresh(predictions).anomaly_map, post(predictions).anomaly_map)
    assert fresh.pixel_quantile == 0.9


def test_equal_scores_give_a_defined_result() -> None:
    scores, labels, maps = torch.ones(8), torch.arange(8) % 2 == 1, torch.zeros(8, 1, 4, 4)
    out = _fitted(scores, labels, maps)(InferenceBatch(pred_score=scores, anomaly_map=maps))
    assert out.pred_score.tolist() == [0.5] * 8
    assert torch.isfinite(out.anomaly_map).all()


def test_quantile_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel_quantile must lie between 0 and 1"):
        RankPreservingPostProcessor(pixel_quantile=1.0)


@pytest.mark.parametrize("values", [1000, 40, 4, 1])
@pytest.mark.parametrize(("n", "rate"), [(19, 0.1), (39, 0.1), (100, 0.1), (9, 0.5)])
def test_the_false_positive_rate_is_kept_exactly(n: int, rate: float, values: int) -> None:
    """Leave each of n + 1 exchangeable float32 scores out: the share that alarms is the rate, ties included."""
    rng = np.random.default_rng(n + values)
    pool = (rng.integers(0, values, n + 1) / 7 + 3).astype(np.float32)
    alarms = 0
    for out in range(n + 1):
        normal = torch.tensor(np.delete(pool, out))
        scores = torch.cat([normal, normal + 0.05])
        labels = torch.arange(2 * n) >= n
        post = _fitted(scores, labels, torch.zeros(2 * n, 1, 2, 2),
                       threshold_rule="false_positive_rate", threshold_target=rate)  # fmt: skip
        query = InferenceBatch(pred_score=torch.tensor(pool[out : out + 1]), anomaly_map=torch.zeros(1, 1, 2, 2))
        alarms += int(post(query).pred_label)
    assert alarms / (n + 1) <= rate + 1e-9


def test_nan_is_no_normal_image_and_tied_abnormal_scores_are_found() -> None:
    labels = torch.tensor([False, False, True, True])
    post = _fitted(torch.tensor([0.0, 1.0, 2.0, 2.0]), labels, torch.zeros(4, 1, 2, 2))
    maps = torch.zeros(3, 1, 2, 2)
    asked = torch.tensor([2.0, float(np.nextafter(np.float32(2), np.float32(0))), float("nan")])
    assert post(InferenceBatch(pred_score=asked, anomaly_map=maps)).pred_label.tolist() == [True, False, True]


def test_order_is_kept_beyond_the_stated_bound() -> None:
    post = _fitted(torch.tensor([-1.0, 0.0, 0.5, 1.0]), torch.arange(4) > 1, torch.zeros(4, 1, 2, 2))
    centre = float(post.image_threshold)
    rng = np.random.default_rng(0)
    x = (centre + rng.choice([-1, 1], 20000) * 10 ** rng.uniform(-4, 4, 20000)).astype(np.float32).astype(float)
    gap = 2.0**-22 * 2 * (1 + 2 * abs(x - centre)) ** 2 * 1.01 + 1e-6 * abs(x)
    keep = gap < 0.1 * abs(x - centre)
    x, gap = x[keep], gap[keep]
    y = x - np.sign(x - centre) * gap  # nearer to the threshold: x has the larger |z|
    both = torch.tensor(np.r_[x, y], dtype=torch.float32)
    out = post(InferenceBatch(pred_score=both, anomaly_map=torch.zeros(len(both), 1, 1, 1))).pred_score.numpy()
    assert (np.sign(out[: len(x)] - out[len(x) :]) == np.sign(x - centre)).all()


def test_tables_of_validation_have_normalised_scores_and_decisions() -> None:
    """The writer asks the post-processor for them after the fit, when there are no maps."""
    from types import SimpleNamespace

    from anomalib_cxr.callbacks.predictions_writer import _post_processed

    processor = RankPreservingPostProcessor()
    for name, value in (("image_min", 0.0), ("image_max", 2.0), ("_image_threshold", 1.0)):
        setattr(processor, name, torch.tensor(value))
    scores, decisions = _post_processed([0.0, 1.0, 2.0], SimpleNamespace(post_processor=processor, device="cpu"))
    assert scores == pytest.approx([0.5 * (1 - 2 / 3), 0.5, 0.5 * (1 + 2 / 3)])
    assert decisions == [0, 1, 1]
