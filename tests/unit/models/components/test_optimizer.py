"""Optimisers against timm's own, bit for bit, and against steps written by hand where timm's are mended."""

import copy

import numpy as np
import pytest
import timm.optim
import torch
from torch import nn

from anomalib_cxr.models.components.optimizer import build_optimizer

TRUST = 0.001  # timm's trust coefficient, that of the LARS paper


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> list[torch.Tensor]:
    inputs = torch.randn(steps, 8, 5, generator=torch.Generator().manual_seed(1))
    for batch in inputs:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    return [value.detach().clone() for value in model.parameters()]


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(
    ("name", "decay"),
    [
        ("sgd", 3e-5), ("sgd", 0.0), ("momentum", 1e-3), ("lars", 1e-6), ("nlars", 1e-2), ("larc", 1e-3),
        ("adamw", 0.05), ("adam", 0.0), ("rmsprop", 1e-3), ("lamb", 0.0), ("lookahead_sgd", 1e-3),
    ],
)  # fmt: skip
def test_bit_identical_to_timm(name: str, decay: float, filtered: bool) -> None:
    ours, theirs = network(), network()
    expected = timm.optim.create_optimizer_v2(
        theirs, opt=name, lr=0.05, momentum=0.8, weight_decay=decay, filter_bias_and_bn=filtered
    )
    found = train(ours, build_optimizer(ours, name, 0.05, 0.8, decay, filter_bias_and_bn=filtered))
    for got, wanted in zip(found, train(theirs, expected), strict=True):
        assert torch.equal(got, wanted)


def lars_by_hand(weights, gradients, buffers, rate, momentum, decay, adapted):
    """Algorithm 1 of You et al. 2017, in float64: local rate, decay, momentum, step."""
    for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
        w_norm, g_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
        ratio = TRUST * w_norm / (g_norm + decay * w_norm) if adapted[i] and w_norm > 0 and g_norm > 0 else 1.0
        buffers[i] = momentum * buffers[i] + ratio * (g + decay * w)
        weights[i] = w - rate * buffers[i]


@pytest.mark.parametrize("name", ["lars", "lookahead_lars"])
@pytest.mark.parametrize("given", ["module", "iterator", "groups"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_without_weight_decay_is_lars(given: str, momentum: float, name: str) -> None:
    model = network()
    parameters = {"module": model, "iterator": model.parameters(), "groups": [{"params": [*model.parameters()]}]}
    # Three steps: lookahead first looks back after six.
    optimizer = build_optimizer(parameters[given], name, 0.3, momentum, weight_decay=0.0)
    weights = [value.detach().double().numpy().copy() for value in model.parameters()]
    buffers = [np.zeros_like(w) for w in weights]
    for batch in torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(2)):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        gradients = [value.grad.double().numpy().copy() for value in model.parameters()]
        lars_by_hand(weights, gradients, buffers, 0.3, momentum, 0.0, [True] * len(weights))
        optimizer.step()
        for value, expected in zip(model.parameters(), weights, strict=True):
            np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-4, atol=1e-7)


def test_the_trust_ratio_spares_with_and_without_decay_the_same_parameters() -> None:
    """Decays of zero and of next to nothing must be next to the same training."""
    for filtered in (False, True):
        model, other = network(), network()
        found = train(model, build_optimizer(model, "lars", 0.3, 0.9, 0.0, filter_bias_and_bn=filtered))
        near = train(other, build_optimizer(other, "lars", 0.3, 0.9, 1e-12, filter_bias_and_bn=filtered))
        for got, wanted in zip(found, near, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)
    model = network()
    before = [value.detach().clone() for value in model.parameters()]
    for value in model.parameters():
        value.grad = torch.full_like(value, 100.0)
    build_optimizer(model, "lars", 1.0, 0.0, 0.0).step()
    for value, old in zip(model.parameters(), before, strict=True):
        if old.norm() > 0:
            assert float((value.detach() - old).norm()) == pytest.approx(TRUST * float(old.norm()), rel=1e-4)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nlars", "sgdw"])
def test_momentum_of_zero_is_plain_descent(name: str) -> None:
    model = network()
    optimizer = build_optimizer(model, name, 0.1, momentum=0, weight_decay=0.0)
    twin = copy.deepcopy(model)
    model(torch.ones(3, 5)).sum().backward()
    twin(torch.ones(3, 5)).sum().backward()
    optimizer.step()
    for value, old in zip(model.parameters(), twin.parameters(), strict=True):
        step = old.grad
        if name == "nlars" and old.norm() > 0 and old.grad.norm() > 0:
            step = TRUST * old.norm() / old.grad.norm() * old.grad
        torch.testing.assert_close(value, old - 0.1 * step, rtol=1e-5, atol=1e-8)


def test_momentum_is_classical_and_sgd_is_nesterov() -> None:
    for name, nesterov in (("momentum", False), ("sgd", True)):
        weight = nn.Parameter(torch.tensor([1.0]))
        optimizer = build_optimizer([weight], name, 0.1, momentum=0.5)
        expected, velocity = 1.0, 0.0
        for gradient in (1.0, -3.0, 2.0):
            weight.grad = torch.tensor([gradient])
            optimizer.step()
            velocity = 0.5 * velocity + gradient
            expected -= 0.1 * (gradient + 0.5 * velocity if nesterov else velocity)
            assert weight.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["lars", "lookahead_lars", "momentum"])
@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("filtered", [False, True])
def test_groups_of_modules_are_trained_as_the_whole_module(name: str, decay: float, filtered: bool) -> None:
    whole, parted = network(), network()
    groups = [{"params": part} for part in (parted[:2], parted[2], parted[3])]
    expected = train(whole, build_optimizer(whole, name, 0.05, 0.8, decay, filter_bias_and_bn=filtered))
    found = train(parted, build_optimizer(groups, name, 0.05, 0.8, decay, filter_bias_and_bn=filtered))
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer='sdg' is none of timm's"):
        build_optimizer(network(), "sdg", 0.1)
