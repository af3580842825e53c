"""Adversarial losses by torch's own and by plain formulas; the penalty of critics whose slope is known."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anomalib_cxr.models.components.adversarial import (
    adversarial_loss,
    gradient_penalty,
    initialise_like_dcgan,
    refuse_running_statistics,
    takes_turn,
)


@pytest.mark.parametrize("real", [True, False])
def test_losses_by_torch_and_by_hand(real: bool) -> None:
    logits = torch.linspace(-20, 30, 12).reshape(3, 4)
    wanted = torch.full_like(logits, float(real))
    torch.testing.assert_close(
        adversarial_loss(logits, real, "bce"), nn.functional.binary_cross_entropy_with_logits(logits, wanted)
    )
    torch.testing.assert_close(adversarial_loss(logits, real, "lsgan"), nn.functional.mse_loss(logits, wanted))
    answers = logits.numpy().astype(float) + 0.25
    found = adversarial_loss(logits + 0.25, real, "wasserstein")
    assert float(found) == pytest.approx(-answers.mean() if real else answers.mean())


def test_a_fooled_critic_teaches_in_bfloat16_too() -> None:
    """Of log(sigmoid) nothing would be left: the sigmoid of −200 is 0."""
    logits = torch.full((4,), -200.0, dtype=torch.bfloat16, requires_grad=True)
    loss = adversarial_loss(logits, real=True)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == 200
    assert torch.equal(logits.grad, torch.full((4,), -0.25, dtype=torch.bfloat16))


def test_a_loss_that_there_is_not_is_refused() -> None:
    unknown: Any = "wassertein"
    with pytest.raises(ValueError, match="did you mean 'wasserstein'"):
        adversarial_loss(torch.zeros(1), True, unknown)


def pairs(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_penalty_of_a_linear_critic_and_what_it_teaches() -> None:
    weights = torch.tensor([3.0, 0.0, -4.0], requires_grad=True)
    real, fake = pairs(5, 3)
    penalty = gradient_penalty(lambda x: x @ weights, real, fake, torch.Generator().manual_seed(0))
    assert penalty.item() == pytest.approx((5 - 1) ** 2)
    penalty.backward()
    torch.testing.assert_close(weights.grad, 2 * (5 - 1) * weights.detach() / 5)


def test_penalty_of_a_quadratic_critic_between_the_pairs() -> None:
    """∇ ½ xᵀAx = Ax at one point for each pair, all pixels of a pair mixed alike."""
    root = np.random.default_rng(0).normal(size=(12, 12))
    matrix = root + root.T
    real, fake = pairs(6, 1, 3, 4)
    share = torch.rand(6, generator=torch.Generator().manual_seed(4)).numpy().astype(float)
    flat = torch.from_numpy(matrix).float().requires_grad_()
    fake.requires_grad_()
    critic = lambda x: ((x.flatten(1) @ flat) * x.flatten(1)).sum(dim=1) / 2  # noqa: E731
    found = gradient_penalty(critic, real, fake, torch.Generator().manual_seed(4))
    wanted = []
    for u, x, y in zip(share, real.double().numpy(), fake.detach().double().numpy(), strict=True):
        wanted.append((np.linalg.norm(matrix @ (u * x + (1 - u) * y).ravel()) - 1) ** 2)
    assert found.item() == pytest.approx(np.mean(wanted), rel=1e-5)
    found.backward()
    assert flat.grad is not None
    assert fake.grad is None


def test_penalty_is_in_float32_inside_autocast() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    real, fake = pairs(4, 6)
    plain = gradient_penalty(critic, real, fake, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert critic(real).dtype == torch.bfloat16
        inside = gradient_penalty(critic, real, fake.bfloat16().float(), torch.Generator().manual_seed(0))
        rounded = gradient_penalty(critic, real, fake.bfloat16(), torch.Generator().manual_seed(0))
        same = gradient_penalty(critic, real, fake, torch.Generator().manual_seed(0))
    assert torch.equal(plain, same)
    assert torch.equal(inside, rounded)
    assert rounded.dtype == torch.float32


def test_turns_are_the_last_of_each_few_steps() -> None:
    assert [step for step in range(15) if takes_turn(step, 5)] == list(range(15))[4::5]
    assert all(takes_turn(step, 1) for step in range(4))


def test_running_statistics_are_refused_by_name() -> None:
    refuse_running_statistics(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)))
    refuse_running_statistics(nn.BatchNorm2d(2, track_running_stats=False))
    for layer in (nn.BatchNorm1d(2), nn.SyncBatchNorm(2), nn.InstanceNorm2d(2, track_running_stats=True)):
        with pytest.raises(ValueError, match=rf"The critic's layer '1.0' \({type(layer).__name__}\) keeps running"):
            refuse_running_statistics(nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer)))


def test_layers_are_drawn_as_in_dcgan() -> None:
    layers = nn.Sequential(
        nn.Sequential(nn.Conv2d(32, 64, 4), nn.BatchNorm2d(4096)), nn.ConvTranspose2d(32, 64, 4), nn.Linear(128, 256),
        nn.GroupNorm(1, 4096), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Linear(3, 3, bias=False),
    )  # fmt: skip
    torch.manual_seed(0)
    initialise_like_dcgan(layers)
    for name, weights in layers.named_parameters():
        if name.endswith("bias"):
            assert not weights.any(), name
        elif weights.numel() > 9:
            mean = 1 if weights.ndim == 1 else 0
            assert float(weights.mean()) == pytest.approx(mean, abs=0.0015), name
            assert float(weights.std()) == pytest.approx(0.02, rel=0.04), name
