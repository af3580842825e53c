"""The schedule against torch's own warm-up and cosine."""

import math

import pytest
import torch

from anomalib_cxr.models.schedule import warmup_cosine


@pytest.mark.parametrize("warmup", [1, 5])
def test_equals_torchs_linear_and_cosine(warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30 - warmup)
    after = []
    for _ in range(30 - warmup + 1):
        after.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    expected = [(step + 1) / warmup for step in range(warmup)] + after
    assert [warmup_cosine(step, warmup, 30) for step in range(31)] == pytest.approx(expected)


def test_without_an_end_the_rate_stays() -> None:
    assert [warmup_cosine(step, 2, math.inf) for step in (0, 1, 2, 10_000)] == [0.5, 1, 1, 1]
