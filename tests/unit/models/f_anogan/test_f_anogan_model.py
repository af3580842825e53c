"""FAnoGAN's scores by numpy, which player learns from which term, and the published networks."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomalib_cxr.models import FAnoGAN
from anomalib_cxr.models.components.adversarial import refuse_running_statistics
from anomalib_cxr.models.f_anogan.networks import ResidualCoder, ResidualCritic, ResidualGenerator
from anomalib_cxr.models.f_anogan.tiles import random_tiles
from anomalib_cxr.models.f_anogan.torch_model import FAnoGANModel

SMALL: dict[str, Any] = {"image_size": 32, "width": 1, "latent_size": 6}


def films(count: int, seed: int, side: int = 32) -> torch.Tensor:
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, side, mode="bilinear").expand(-1, 3, -1, -1)


@torch.no_grad()
@pytest.mark.parametrize("network", ["conv", "residual"])
def test_the_score_is_pixels_and_kappa_times_features_by_numpy(network: Any) -> None:
    torch.manual_seed(0)
    model = FAnoGANModel(**SMALL, network=network, kappa=0.25).eval()
    images = films(4, 0)
    grey = 2 * images[:, :1] - 1
    made = model.generator(model.encoder(grey))
    pixels = (grey - made).double().numpy()
    features = (model.critic.features(grey) - model.critic.features(made)).double().numpy()
    found = model(images)
    wanted = (pixels**2).mean(axis=(1, 2, 3)) + 0.25 * (features**2).mean(axis=1)
    np.testing.assert_allclose(found.pred_score, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.anomaly_map, np.abs(pixels), atol=1e-6)


def test_nothing_is_lost_by_an_encoder_and_a_generator_that_copy() -> None:
    model = FAnoGANModel(**SMALL).eval()
    model.encoder, model.generator = nn.Flatten(), nn.Unflatten(1, (1, 32, 32))
    found = model(films(3, 1))
    assert not found.anomaly_map.any()
    assert not found.pred_score.any()


def taught(model: FAnoGANModel, loss: torch.Tensor) -> list[str]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    return sorted(moved)


def test_each_player_learns_from_its_own_terms_alone() -> None:
    torch.manual_seed(0)
    model = FAnoGANModel(**SMALL)
    images, draws = films(4, 0), torch.Generator().manual_seed(0)
    learns = {term: taught(model, loss) for term, loss in model.playing_losses(images, draws).items()}
    assert learns == {"critic": ["critic"], "penalty": ["critic"], "generator": ["generator"]}
    assert list(model.playing_losses(images, draws, generator_plays=False)) == ["critic", "penalty"]
    learns = {term: taught(model, loss) for term, loss in model.coding_losses(images, draws).items()}
    assert learns == {"pixels": ["encoder"], "features": ["encoder"]}


def test_the_encoder_learns_its_score_from_players_at_rest() -> None:
    """In training mode, what it learns is what evaluation mode scores, but for its own batch statistics."""
    torch.manual_seed(0)
    model = FAnoGANModel(**SMALL, kappa=0.25)
    images = films(6, 0)
    for _ in range(3):
        model.playing_losses(images, torch.Generator())
    before = copy.deepcopy(model.state_dict())
    losses = model.coding_losses(images, torch.Generator())
    after = model.state_dict()
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"encoder"}
    model.generator.eval()
    with torch.no_grad():
        score = model(images).pred_score.mean()
    torch.testing.assert_close(losses["pixels"] + losses["features"], score)


@torch.no_grad()
def test_codes_lie_between_one_and_minus_one_or_anywhere() -> None:
    for code_range, widest in (("tanh", (0.99, 1.0)), ("none", (3.0, 100.0))):
        torch.manual_seed(0)
        model = FAnoGANModel(**SMALL, code_range=code_range)  # type: ignore[arg-type]
        model.encoder[0][-1].weight.mul_(200)
        assert widest[0] < model.encoder(2 * films(5, 2)[:, :1] - 1).abs().max() <= widest[1]


# --------------------------------------------------------------------------------------------------------- the networks


def test_published_sizes_in_millions_of_parameters() -> None:
    with torch.device("meta"):
        networks = ResidualCritic(64), ResidualGenerator(64), ResidualCoder(64)
    found = [sum(p.numel() for p in network.parameters()) / 1e6 for network in networks]
    assert [round(millions, 1) for millions in found] == [7.5, 8.5, 8.5]


@torch.no_grad()
def test_blocks_layer_by_layer_as_published() -> None:
    torch.manual_seed(0)
    critic, generator = ResidualCritic(32, width=2), ResidualGenerator(32, width=1, latent=3).eval()
    for norm in (layer for layer in (*critic.modules(), *generator.modules()) if hasattr(layer, "num_groups")):
        nn.init.normal_(norm.weight)
    halving, doubling = critic.trunk[2], generator[3]
    features = torch.randn(3, 4, 8, 8)

    def conv(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)

    def by_layer(layer: Any, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[1:]) * layer.weight[:, None, None] + layer.bias[:, None, None]

    def halved(x: torch.Tensor) -> torch.Tensor:
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    first, second = [layer for layer in halving.body if isinstance(layer, nn.Conv2d)]
    hidden = conv(first, by_layer(halving.body[0], features).relu())
    hidden = halved(conv(second, by_layer(halving.body[3], hidden).relu()))
    torch.testing.assert_close(halving(features), hidden + conv(halving.shortcut[1], halved(features)))
    assert first.bias is None
    assert second.bias is not None

    features = torch.randn(3, 8, 4, 4)
    first, second = [layer for layer in doubling.body if isinstance(layer, nn.Conv2d)]
    large = torch.kron(features.relu() / (1 + 1e-5) ** 0.5, torch.ones(2, 2))  # fresh statistics: mean 0, variance 1
    hidden = conv(second, conv(first, large).relu() / (1 + 1e-5) ** 0.5)
    published = conv(doubling.shortcut[0], torch.kron(features, torch.ones(2, 2)))
    torch.testing.assert_close(doubling(features), hidden + published)


@torch.no_grad()
@pytest.mark.parametrize("network", ["conv", "residual"])
def test_critics_judge_one_by_one(network: Any) -> None:
    torch.manual_seed(0)
    critic, images = FAnoGANModel(**SMALL, network=network).critic, 2 * films(5, 2)[:, :1] - 1
    refuse_running_statistics(critic)
    answers = critic(images)
    assert len(answers.unique()) == 5
    torch.testing.assert_close(answers, torch.cat([critic(one[None]) for one in images]))


# ------------------------------------------------------------------------------------------------------------- patches


def test_training_tiles_come_from_anywhere_in_each_image() -> None:
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    films_apart = torch.stack([torch.stack([rows, columns, torch.full_like(rows, n)]) for n in range(300)])
    tiles = random_tiles(films_apart, 4, torch.Generator().manual_seed(0))
    assert tiles.shape == (300, 3, 4, 4)
    places = []
    for number, tile in enumerate(tiles):
        top, left = int(tile[0, 0, 0]), int(tile[1, 0, 0])
        assert torch.equal(tile, films_apart[number, :, top : top + 4, left : left + 4])
        places.append((top, left))
    counts = [places.count((top, left)) for top in range(6) for left in range(4)]
    assert sum(counts) == 300
    assert min(counts) > 0


@torch.no_grad()
@pytest.mark.parametrize(("tile_score", "of_tiles"), [("mean", torch.mean), ("highest", torch.max)])
def test_a_large_image_is_scored_tile_by_tile(tile_score: Any, of_tiles: Any) -> None:
    torch.manual_seed(0)
    whole = FAnoGANModel(**SMALL).eval()
    model = FAnoGANModel(**SMALL | {"image_size": 96}, patch_size=32, tile_score=tile_score).eval()
    model.load_state_dict(whole.state_dict())
    images = films(2, 3, side=96)
    found = model(images)
    for number, image in enumerate(images):
        scores = []
        for top in (0, 32, 64):
            for left in (0, 32, 64):
                place = (slice(top, top + 32), slice(left, left + 32))
                alone = whole(image[None][(..., *place)])
                scores.append(alone.pred_score)
                torch.testing.assert_close(found.anomaly_map[number, 0][place], alone.anomaly_map[0, 0])
        torch.testing.assert_close(found.pred_score[number], of_tiles(torch.stack(scores)))


def test_flips_mirror_half_of_the_training_images() -> None:
    images = films(200, 4)
    grey = FAnoGANModel(**SMALL).seen(images, torch.Generator())
    torch.testing.assert_close(grey, 2 * images[:, :1] - 1)
    seen = FAnoGANModel(**SMALL, horizontal_flips=True).seen(images, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(one, before.flip(-1)) for one, before in zip(seen, grey, strict=True)]
    kept = [torch.equal(one, before) for one, before in zip(seen, grey, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130


# ----------------------------------------------------------------------------------------------------------- arguments


def test_what_makes_no_model_says_so() -> None:
    for arguments, message in (
        ({"image_size": 100}, "image_size must be a multiple of 16, 32 or more, not 100: take 96"),
        ({"patch_size": 48, "image_size": 128}, "divides image_size=128, one of 32, 64, 128, not 48"),
        ({"patch_size": 16, "image_size": 128}, "divides image_size=128, one of 32, 64, 128, not 16"),
        ({"latent_size": 0}, "latent_size must be 1 or more, not 0"),
        ({"width": 0}, "width must be 1 or more, not 0"),
        ({"kappa": -1.0}, "kappa must be 0 or more, not -1.0"),
        ({"critic_steps": 0}, "critic_steps must be 1 or more, not 0"),
        ({"gan_steps": 600}, "gan_steps must be 1 or more and leave the encoder some of max_steps=600, not be 600"),
        ({"gan_steps": 0}, "gan_steps must be 1 or more"),
        ({"max_steps": 1}, "max_steps must be at least 2, not 1"),
        ({"encoder_learning_rate": 0.0}, "encoder_learning_rate must be positive, not 0.0"),
        ({"network": "resnet"}, "network must be one of 'residual', 'conv', not 'resnet'"),
        ({"code_range": "clip"}, "code_range must be one of 'tanh', 'none', not 'clip'"),
        ({"tile_score": "max"}, "tile_score must be one of 'mean', 'highest', not 'max'"),
    ):
        with pytest.raises(ValueError, match=message):
            FAnoGAN(**arguments)


def test_the_share_of_the_first_stage_follows_the_length() -> None:
    def stages(**arguments: Any) -> list[tuple[str, int]]:
        return [tuple(stage) for stage in FAnoGAN(width=1, **arguments).stages]

    assert stages() == [("gan", 400), ("encoder", 200)]
    assert stages(max_steps=30) == [("gan", 20), ("encoder", 10)]
    assert stages(max_steps=2) == [("gan", 1), ("encoder", 1)]
    assert stages(max_steps=30, gan_steps=7) == [("gan", 7), ("encoder", 23)]
