"""The discriminator at test against torch's batch normalisation, film by film."""

import copy

import pytest
import torch
from torch import nn

from anomalib_cxr.models.squid.discriminator import Discriminator, FilmNorm


def trained(side: int) -> Discriminator:
    """A discriminator whose scales and shifts are not those of the start."""
    torch.manual_seed(0)
    discriminator = Discriminator(side)
    for layer in discriminator.modules():
        if isinstance(layer, FilmNorm):
            nn.init.normal_(layer.weight, 1.0, 0.5)
            nn.init.normal_(layer.bias)
    return discriminator


def with_batch_norm(discriminator: Discriminator) -> nn.Sequential:
    """The same with torch's own batch normalisation, in training mode."""
    layers = []
    for layer in copy.deepcopy(discriminator.layers):
        if isinstance(layer, FilmNorm):
            plain = nn.BatchNorm2d(layer.num_features)
            plain.weight, plain.bias = layer.weight, layer.bias
            layer = plain
        layers.append(layer)
    return nn.Sequential(*layers, nn.Flatten(), copy.deepcopy(discriminator.last)).train()


@pytest.mark.parametrize("side", [32, 64, 128])
@torch.no_grad()
def test_at_test_it_is_batch_norm_in_training_mode_of_one_film(side: int) -> None:
    discriminator, films = trained(side).eval(), torch.rand(3, 1, side, side)
    plain = with_batch_norm(discriminator)
    expected = torch.stack([plain(one[None])[0, 0] for one in films])
    torch.testing.assert_close(discriminator(films), expected)


@torch.no_grad()
def test_a_films_score_does_not_depend_on_its_batch_but_in_training() -> None:
    discriminator, films = trained(64).eval(), torch.rand(6, 1, 64, 64)
    whole = discriminator(films)
    for size in (1, 2, 4):
        torch.testing.assert_close(torch.cat([discriminator(part) for part in films.split(size)]), whole)
    discriminator.train()
    torch.testing.assert_close(discriminator(films), with_batch_norm(discriminator)(films)[:, 0])
    assert not torch.allclose(discriminator(films[:3]), discriminator(films)[:3], atol=1e-3)


def test_no_statistics_of_training_are_kept() -> None:
    assert not list(trained(64).buffers())


def test_the_layout_at_the_published_size() -> None:
    layers = [layer for layer in Discriminator(128).modules() if isinstance(layer, nn.Conv2d | FilmNorm | nn.Linear)]
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ["Conv2d", *["Conv2d", "FilmNorm"] * 4, "Linear"]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [16, 32, 64, 128, 128]
    assert {(layer.kernel_size, layer.stride, layer.padding) for layer in convolutions} == {((5, 5), (2, 2), (2, 2))}
    assert layers[-1].in_features == 128 * 4 * 4
