"""Losses, centre and radius in closed form, networks layer by layer, the paper's preset, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models import DeepSVDD
from anomalib_cxr.models.deep_svdd.networks import Decoder, Encoder
from anomalib_cxr.models.deep_svdd.torch_model import DeepSVDDModel


def images(count: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(seed))


def build(**arguments: Any) -> DeepSVDDModel:
    torch.manual_seed(0)
    return DeepSVDDModel(**arguments)


class LinearEncoder(nn.Module):
    """Codes that are linear in pixels, so that all is known of them."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(32 * 32, 128, bias=False)

    def maps(self, images: Tensor) -> Tensor:
        return images

    def forward(self, images: Tensor) -> Tensor:
        return self.code(images.flatten(1))


def linear_model(films: Tensor) -> DeepSVDDModel:
    model = build(contrast_normalisation=False, pretraining=False).eval()
    model.encoder = LinearEncoder()
    with torch.no_grad():
        model.encoder.code.weight.abs_()  # no coordinate of the centre lies near 0
        model.fit_centre(model.encoder(films))
        model.normal_map.fit(films)
    return model


def test_with_linear_codes_scores_are_squared_distances_to_the_mean_which_are_least() -> None:
    films, asked = images(40, 1), images(5, seed=1)
    model = linear_model(films)
    weight = model.encoder.code.weight.detach().double().numpy()
    mean = films.double().numpy().reshape(40, -1).mean(axis=0)
    assert np.abs(weight @ mean).min() > 0.1
    from_mean = weight @ (asked.double().numpy().mean(axis=1).reshape(5, -1) - mean).T
    with torch.no_grad():
        found = model(asked)
        at_mean = float(model.description_loss(model.distances(model.encoder(films))))
        np.testing.assert_allclose(found.pred_score.numpy(), (from_mean**2).sum(axis=0), rtol=1e-3)
        model.centre += 0.05 * torch.randn(128, generator=torch.Generator().manual_seed(0))
        beside = float(model.description_loss(model.distances(model.encoder(films))))
    # Of all centres the mean has the least loss, the trace of the codes' covariance.
    assert at_mean == pytest.approx(np.trace(np.cov(weight @ films.numpy().reshape(40, -1).T, ddof=0)), rel=1e-3)
    assert beside > at_mean


def test_the_map_is_the_squared_difference_from_the_normal_mean() -> None:
    films, asked = images(7, 1), images(3, seed=1)
    found = linear_model(films)(asked).anomaly_map
    expected = (asked.mean(dim=1) - films[:, 0].mean(dim=0)) ** 2
    torch.testing.assert_close(found[:, 0], expected)


def test_coordinates_of_the_centre_keep_away_from_zero() -> None:
    model = build()
    codes = torch.zeros(4, 128)
    codes[:, :6] = torch.tensor([0.05, -0.05, 0.1, -0.2, 3.0, 1e-9]) + torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    codes[:, 5] = 1e-9
    model.fit_centre(codes)
    torch.testing.assert_close(model.centre[:6], torch.tensor([0.1, -0.1, 0.1, -0.2, 3.0, 0.1]))
    assert torch.equal(model.centre[6:], torch.zeros(122))


@pytest.mark.parametrize("nu", [0.1, 0.3])
def test_the_radius_is_the_empirical_quantile(nu: float) -> None:
    model = build(objective="soft_boundary", nu=nu)
    distances = torch.rand(31, generator=torch.Generator().manual_seed(0))
    model.fit_radius(distances**2)
    ordered = sorted(distances.tolist())
    place = (1 - nu) * 30
    low = int(place)
    expected = ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])
    assert float(model.radius) == pytest.approx(expected, abs=1e-6)
    assert float((distances > model.radius).float().mean()) == pytest.approx(nu, abs=1 / 31)


def test_losses_are_the_papers() -> None:
    distances = torch.tensor([0.5, 2.0, 4.0, 7.0])
    assert float(build().description_loss(distances)) == pytest.approx(3.375)
    model = build(objective="soft_boundary", nu=0.2)
    assert float(model.description_loss(distances)) == pytest.approx(3.375 / 0.2)  # the radius is 0 at first
    model.radius = torch.tensor(1.5)
    assert float(model.description_loss(distances)) == pytest.approx(2.25 + (1.75 + 4.75) / 4 / 0.2)


def test_a_soft_boundarys_score_is_negative_inside_and_ranks_as_without() -> None:
    films = images(6)
    model = build(objective="soft_boundary").eval()
    model.objective = "one_class"
    with torch.no_grad():
        plain = model(films).pred_score
        model.objective = "soft_boundary"
        model.radius = plain.median().sqrt()
        found = model(films).pred_score
    torch.testing.assert_close(found, plain - plain.median())
    assert 0 < int((found < -1e-6).sum()) < 6


def test_films_have_mean_zero_and_mean_absolute_value_one_then_the_training_films_range() -> None:
    model, films = build(), images(5) * images(5, seed=1)[:, :1, :1, :1] + 0.2
    grey = films.double().numpy().mean(axis=1)
    expected = []
    for one in grey:
        centred = one - one.mean()
        expected.append(centred / np.abs(centred).mean())
    np.testing.assert_allclose(model.contrast(films)[:, 0].numpy(), expected, atol=1e-5)
    low, high = np.min(expected), np.max(expected)
    model.fit_range(torch.tensor(low).float(), torch.tensor(high).float())
    np.testing.assert_allclose(model.normalised(films)[:, 0], (expected - low) / (high - low), atol=1e-5)
    plain = build(contrast_normalisation=False)
    np.testing.assert_allclose(plain.normalised(films)[:, 0].numpy(), grey, atol=1e-6)
    assert model.contrast(torch.full((1, 1, 32, 32), 0.3)).isfinite().all()


def unit(hidden: Tensor) -> Tensor:
    """Batch normalisation without scale and shift."""
    axes = [0, 2, 3][: hidden.ndim - 1]
    centred = hidden - hidden.mean(dim=axes, keepdim=True)
    return centred / (centred.square().mean(dim=axes, keepdim=True) + 1e-4).sqrt()


def leaky(hidden: Tensor) -> Tensor:
    return torch.where(hidden > 0, hidden, 0.01 * hidden)


@torch.no_grad()
def test_networks_are_the_published_ones_and_pre_train_on_summed_squares() -> None:
    model, films = build(), images(4, 1)
    weights = dict(model.named_parameters())
    shapes = [tuple(weight.shape) for weight in weights.values()]
    assert shapes == [
        *[(32, 1, 5, 5), (64, 32, 5, 5), (128, 64, 5, 5), (128, 2048)],
        *[(8, 128, 5, 5), (128, 64, 5, 5), (64, 32, 5, 5), (32, 1, 5, 5)],
    ]
    seen = model.contrast(films)
    hidden = seen
    for block in (0, 4, 8):
        hidden = leaky(unit(F.conv2d(hidden, weights[f"encoder.blocks.{block}.weight"], padding=2)))
        hidden = hidden.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(-1, -2))
    codes = hidden.flatten(1) @ weights["encoder.code.weight"].T
    torch.testing.assert_close(model.encoder(seen), codes, rtol=1e-3, atol=1e-4)
    hidden = leaky(unit(codes).reshape(4, 8, 4, 4))
    for layer in range(3):
        hidden = F.conv_transpose2d(hidden, weights[f"decoder.layers.{layer}.weight"], padding=2)
        hidden = leaky(unit(hidden)).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    made = 1 / (1 + (-F.conv_transpose2d(hidden, weights["decoder.last.weight"], padding=2)).exp())
    expected = sum((one - other).square().sum() for one, other in zip(made, seen, strict=True)) / 4
    torch.testing.assert_close(model.reconstruction_loss(films), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 40)])
def test_no_parameter_is_a_bias_and_any_size_comes_back(size: tuple[int, int]) -> None:
    model = build(image_size=size)
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "bias" in name or "norm" in name]
    affine = [one for one in model.modules() if getattr(one, "affine", False) or getattr(one, "bias", None) is not None]
    assert not affine
    encoder, decoder = Encoder(size), Decoder(size)
    assert decoder(encoder(torch.rand(2, 1, *size))).shape == (2, 1, *size)


def test_films_that_all_lie_at_one_point_are_refused() -> None:
    DeepSVDDModel.refuse_collapse(torch.tensor([1.0, 1.0 + 3e-6]))
    DeepSVDDModel.refuse_collapse(torch.tensor([1.0]))  # one alone does not vary
    with pytest.raises(RuntimeError, match=r"DeepSVDD has collapsed, .* maps all training films to one point"):
        DeepSVDDModel.refuse_collapse(torch.tensor([1.0, 1.0 + 1e-6]))


def test_the_paper_preset_is_ruffs() -> None:
    model = DeepSVDD(preset="paper")
    optimizer = model.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.Adam
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(1e-4, 5e-7)}
    assert (model.input_size, model.model.objective, model.model.nu) == ((32, 32), "one_class", 0.1)
    assert (model.checkpoint, model.model.contrast_normalisation) == ("last", True)
    # Epochs of 25 steps: 350 as an autoencoder, 150 towards the centre, whose rate is a tenth from the 50th on.
    assert [stage.steps for stage in model.stages] == [350 * 25, 150 * 25]
    second = 350 * 25
    for step, factor in ((0, 1), (second, 1), (second + 50 * 25 - 1, 1), (second + 50 * 25, 0.1), (second + 3749, 0.1)):
        assert model.rate_at(step) == pytest.approx(factor)


def test_each_stage_has_a_cosine_of_its_own() -> None:
    model = DeepSVDD(max_steps=10, pretraining_steps=4)
    expected = [(1 + np.cos(np.pi * step / 4)) / 2 for step in range(4)]
    expected += [(1 + np.cos(np.pi * step / 6)) / 2 for step in range(6)]
    assert [model.rate_at(step) for step in range(10)] == pytest.approx(expected)


def test_faults_name_themselves() -> None:
    for arguments, message in (
        ({"image_size": 60}, "image_size must be a multiple of 8, 32 or more, not 60"),
        ({"image_size": 24}, "image_size must be a multiple of 8, 32 or more, not 24"),
        ({"objective": "soft"}, "objective must be one of 'one_class', 'soft_boundary'"),
        ({"nu": 0.0}, r"nu must lie in \(0, 1\], not be 0.0"),
        ({"milestone": 0.0}, r"milestone must lie in \(0, 1\], not be 0.0"),
        ({"max_steps": 5, "pretraining_steps": 5}, "pretraining_steps must lie in 0 to 4, below max_steps, not be 5"),
        ({"pretraining_steps": -1}, "pretraining_steps must lie in 0 to"),
        ({"preset": "best"}, "preset must be one of 'laptop', 'paper'"),
    ):
        with pytest.raises(ValueError, match=message):
            DeepSVDD(**arguments)
    with pytest.raises(ValueError, match="All training films are of one grey"):
        build().fit_range(torch.tensor(0.0), torch.tensor(0.0))
