"""NT-Xent against a double loop, closed forms, and one process against two."""

import math

import ntx_ent_worker
import pytest
import torch
from torch import multiprocessing as mp

from anomalib_cxr.models.multires_patch_ssl.ntx_ent_loss import NTXentLoss


def loop(first, second, temperature, image=None):
    """Equation 1 of SimCLR, anchor by anchor."""
    views, n = torch.cat((first, second)), len(first)
    losses = []
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        denominator = 0
        for k in range(2 * n):
            if k == i:
                continue
            if image is not None and k != positive and image[k % n] == image[i % n]:
                continue
            cos = torch.dot(views[i], views[k]) / (views[i].norm() * views[k].norm())
            denominator = denominator + torch.exp(cos / temperature)
        cos = torch.dot(views[i], views[positive]) / (views[i].norm() * views[positive].norm())
        losses.append(-torch.log(torch.exp(cos / temperature) / denominator))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("image", [None, [0, 1, 2, 3, 4], [0, 0, 1, 1, 1], [7, 7, 7, 7, 7]])
def test_loss_and_gradient_equal_the_definition(image):
    torch.manual_seed(0)
    first, second = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    index = None if image is None else torch.tensor(image)
    loss = NTXentLoss(0.3)(first, second, index)
    expected = loop(first, second, 0.3, image)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(loss, (first, second)), torch.autograd.grad(expected, (first, second)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_identical_embeddings_give_log_of_the_number_of_candidates(n):
    same = torch.full((n, 4), 3.0, dtype=torch.float64)
    assert NTXentLoss(0.1)(same, same).item() == pytest.approx(math.log(2 * n - 1), abs=1e-12)


def test_without_negatives_the_loss_is_zero():
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    assert NTXentLoss()(first, second, torch.zeros(4, dtype=torch.long)).item() == pytest.approx(0, abs=1e-6)


def test_orthogonal_pairs_closed_form():
    views = torch.eye(4, dtype=torch.float64)
    # Positive at cosine 1, six negatives at 0.
    expected = math.log(math.exp(2.0) + 6) - 2.0
    assert NTXentLoss(0.5)(views, 5 * views).item() == pytest.approx(expected, abs=1e-12)


def test_half_precision_does_not_overflow():
    views = torch.eye(8, dtype=torch.float16)
    loss = NTXentLoss(0.01)(views, views)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "index"),
    [((0, 4), (0, 4), None), ((3, 4), (2, 4), None), ((3, 4), (3, 4), (2,)), ((3,), (3,), None)],
)
def test_wrong_shapes_are_refused(first, second, index):
    with pytest.raises(ValueError, match="NT-Xent needs"):
        NTXentLoss()(torch.ones(first), torch.ones(second), None if index is None else torch.zeros(index))


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="positive temperature"):
        NTXentLoss(0)


def test_two_processes_with_half_the_batch_equal_one(tmp_path):
    mp.spawn(ntx_ent_worker.work, (str(tmp_path),), nprocs=2)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    first, second, image = ntx_ent_worker.data()
    for (loss, *gradients), index in zip(results, (None, image), strict=True):
        model = ntx_ent_worker.encoder()
        expected = NTXentLoss(0.2)(*model(torch.cat((first, second))).chunk(2), index)
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
