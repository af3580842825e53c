"""Cross-conformal thresholds of a bank that grows: the rates that they keep, by simulation."""

import copy

import pytest
import torch
from anomalib.data import InferenceBatch

from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor
from anomalib_cxr.pipelines.commission import score_in_folds


class Nearest(BankMixin):
    """Distance of points (n, 2) to the nearest of a bank, without a map."""

    def __init__(self, references: torch.Tensor) -> None:
        self.references = references

    def model(self, points: torch.Tensor) -> InferenceBatch:
        return InferenceBatch(pred_score=torch.cdist(points, self.references).amin(dim=1), anomaly_map=None)

    def extend_bank(self, images: torch.Tensor) -> None:
        self.references = torch.cat([self.references, images])


def rates(n: int, rate: float, extend: bool, draws: int) -> torch.Tensor:
    """Share of 300 new films of a site above the threshold that n films of it gave, for each draw."""
    reached = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(draw)
        module = Nearest(torch.randn(60, 2, generator=generator))
        site, new = (1.0 + 1.2 * torch.randn(k, 2, generator=generator) for k in (n, 300))
        scores, _ = score_in_folds(module, site, 10, extend)
        post = RankPreservingPostProcessor()
        post.move_thresholds(scores, None, rate)
        if extend:
            module.extend_bank(site)
        reached.append((module.model(new).pred_score >= post._image_threshold).float().mean())
    return torch.stack(reached)


@pytest.mark.parametrize(("n", "rate"), [(20, 0.1), (30, 0.2), (50, 0.05)])
def test_the_rate_is_kept_exactly_by_a_bank_that_stays_and_nearly_by_one_that_grows(n: int, rate: float) -> None:
    draws = 60
    expected = int(rate * (n + 1) + 1e-9) / (n + 1)  # split conformal
    for extend in (False, True):
        reached = rates(n, rate, extend, draws)
        error = float(reached.std()) / draws**0.5
        assert float(reached.mean()) < expected + 3.5 * error
        # The bank has one fold's films more for new films than for those that gave the threshold.
        assert float(reached.mean()) > expected * (0.7 if extend else 1) - 3.5 * error


def test_without_commissioning_the_rate_is_another() -> None:
    generator = torch.Generator().manual_seed(0)
    train, held_out = torch.randn(60, 2, generator=generator), torch.randn(400, 2, generator=generator)
    post = RankPreservingPostProcessor()
    post.move_thresholds(Nearest(train).model(held_out).pred_score, None, 0.1)
    site = 1.0 + 1.2 * torch.randn(400, 2, generator=generator)
    assert (Nearest(train).model(site).pred_score >= post._image_threshold).float().mean() > 0.25


def test_the_module_is_not_changed_and_folds_need_films() -> None:
    module = Nearest(torch.randn(5, 2))
    before = copy.deepcopy(module.references)
    score_in_folds(module, torch.randn(3, 2), 10)
    assert torch.equal(module.references, before)
    for points, folds in ((torch.randn(1, 2), 10), (torch.randn(4, 2), 1)):
        with pytest.raises(ValueError, match="at least two folds"):
            score_in_folds(module, points, folds)
    with pytest.raises(ValueError, match="object has no bank that films could join"):
        score_in_folds(object(), torch.randn(4, 2), 2)
