"""AlphaGAN's scores by numpy, and which player learns from which term."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomalib_cxr.models import AlphaGAN
from anomalib_cxr.models.alpha_gan.torch_model import AlphaGANModel

SMALL: dict[str, Any] = {"image_size": 32, "width": 1, "latent_size": 6, "code_hidden": 8}


def films(count: int, seed: int, side: int = 32) -> torch.Tensor:
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, side, mode="bilinear").expand(-1, 3, -1, -1)


@torch.no_grad()
def test_the_norm_of_the_code_and_the_mean_error_by_numpy() -> None:
    torch.manual_seed(0)
    model = AlphaGANModel(**SMALL).eval()
    images = films(4, 0)
    grey = 2 * images[:, :1] - 1
    codes = model.encoder(grey)
    errors = np.abs(grey.numpy() - model.generator(codes).numpy())
    by_norm = model(images)
    np.testing.assert_allclose(by_norm.pred_score, np.sqrt((codes.double().numpy() ** 2).sum(axis=1)), rtol=1e-5)
    np.testing.assert_allclose(by_norm.anomaly_map, errors, atol=1e-6)
    model.score = "error"
    np.testing.assert_allclose(model(images).pred_score, errors.mean(axis=(1, 2, 3)), rtol=1e-5)


def test_nothing_is_lost_by_an_encoder_and_a_generator_that_copy() -> None:
    model = AlphaGANModel(**SMALL, score="error").eval()
    model.encoder, model.generator = nn.Flatten(), nn.Unflatten(1, (1, 32, 32))
    found = model(films(3, 1))
    assert not found.anomaly_map.any()
    assert not found.pred_score.any()


def test_each_player_learns_from_its_own_terms_alone() -> None:
    torch.manual_seed(0)
    model = AlphaGANModel(**SMALL)
    losses = model.losses(films(4, 0), torch.Generator().manual_seed(0))
    players = ("encoder", "generator", "critic", "code_critic")
    learns = {}
    for term, loss in losses.items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        learns[term] = [
            name
            for name in players
            if any(p.grad is not None and p.grad.any() for p in model.get_submodule(name).parameters())
        ]
    assert learns == {
        "reconstruction": ["encoder", "generator"],
        "images": ["encoder", "generator"],
        "codes": ["encoder"],
        "critic": ["critic"],
        "code_critic": ["code_critic"],
    }
    resting = model.losses(films(4, 0), torch.Generator().manual_seed(0), critics_play=False)
    assert list(resting) == ["reconstruction", "images", "codes"]


@torch.no_grad()
def test_critics_judge_one_by_one() -> None:
    torch.manual_seed(0)
    model = AlphaGANModel(**SMALL)
    images, codes = 2 * films(5, 2)[:, :1] - 1, torch.randn(5, 6)
    for critic, things in ((model.critic, images), (model.code_critic, codes)):
        answers = critic(things)
        assert answers.shape == (5,)
        assert len(answers.unique()) == 5
        torch.testing.assert_close(answers, torch.cat([critic(one[None]) for one in things]))
        torch.testing.assert_close(answers, critic.eval()(things))


def test_what_makes_no_model_says_so() -> None:
    for arguments, message in (
        ({"image_size": 100}, "image_size must be a multiple of 16, 32 or more, not 100: take 96"),
        ({"latent_size": 0}, "latent_size must be 1 or more, not 0"),
        ({"code_hidden": 0}, "code_hidden must be 1 or more, not 0"),
        ({"width": 0}, "width must be 1 or more, not 0"),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight must be 0 or more, not -1.0"),
        ({"reconstruction_weight": float("nan")}, "reconstruction_weight must be 0 or more, not nan"),
        ({"generator_steps": 0}, "generator_steps must be 1 or more, not 0"),
        ({"score": "norm"}, "score must be one of 'code_norm', 'error', not 'norm'"),
        ({"preset": "papr"}, "did you mean 'paper'"),
    ):
        with pytest.raises(ValueError, match=message):
            AlphaGAN(**arguments)


def test_all_players_have_one_rate_and_adams_own_moments() -> None:
    def group(**arguments: Any) -> dict[str, Any]:
        optimizer: Any = AlphaGAN(preset="paper", **SMALL, **arguments).configure_optimizers()["optimizer"]
        (found,) = optimizer.param_groups
        return found

    assert (group()["initial_lr"], group()["betas"], group()["weight_decay"]) == (8e-4, (0.5, 0.9), 0)
    assert group(optimizer="adamw")["betas"] == (0.9, 0.999)
