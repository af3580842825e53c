"""Networks of reconstructions: sizes counted by hand, what each output pixel sees, the U-Net's parts by plain loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from anomalib_cxr.models.components.reconstruction.bottlenecks import SpatialBottleneck, VectorBottleneck
from anomalib_cxr.models.components.reconstruction.convolutional import ConvDecoder, ConvEncoder, check_side
from anomalib_cxr.models.components.reconstruction.global_generator import GlobalDecoder, GlobalEncoder
from anomalib_cxr.models.components.reconstruction.reconstructor import Reconstructor
from anomalib_cxr.models.components.reconstruction.unet import StandardisedConv, UNet, middle_divisor


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("side", "expected"), [(64, 2_351_184), (128, 8_645_712)])
def test_the_published_autoencoder_has_as_many_parameters_as_counted_by_hand(side: int, expected: int) -> None:
    w, d, h, features = 16, 16, 1024, 64 * (side // 16) ** 2
    convolutions = 16 * (1 * w + w * 2 * w + 2 * w * 4 * w + 4 * w * 4 * w)
    norms_down, norms_up = 2 * (w + 2 * w + 4 * w + 4 * w), 2 * (4 * w + 2 * w + w)
    code = (features * h + h) + 2 * h + (h * d + d) + (d * h + h) + 2 * h + (h * features + features)
    assert expected == 2 * convolutions + norms_down + norms_up + code
    network = Reconstructor(ConvEncoder(w), VectorBottleneck(64, side // 16, h, d), ConvDecoder(w))
    assert count(network) == expected


def test_pix2pixhd_in_two_halves_has_as_many_parameters_as_the_whole_generator() -> None:
    n, blocks = 4, 9
    down = sum(n * 2**level * n * 2 ** (level + 1) * 9 + n * 2 ** (level + 1) for level in range(4))
    up = sum(n * 2**level * n * 2 ** (level + 1) * 9 + n * 2**level for level in range(4))
    residual = blocks * 2 * ((16 * n) ** 2 * 9 + 16 * n)
    ends = (49 * n + n) + (49 * n + 1)
    assert count(GlobalEncoder(n)) + count(GlobalDecoder(n)) == down + up + residual + ends


def test_the_denoiser_has_as_many_parameters_as_counted_by_hand() -> None:
    w = 8

    def level(before: int, after: int) -> int:  # two convolutions with biases, two norms
        return 9 * before * after + after + 9 * after**2 + after + 4 * after

    down = level(1, w) + level(w, 2 * w) + level(2 * w, 4 * w)
    up = level(4 * w, 2 * w) + level(2 * w, w) + (4 * 4 * w * 2 * w + 2 * w) + (4 * 2 * w * w + w)
    assert count(UNet(w, depth=2)) == down + up + w + 1


@torch.no_grad()
def test_a_feature_sees_46_pixels_and_no_more() -> None:
    """Four convolutions 4 × 4 of stride 2: 1 + 3 · (1 + 2 + 4 + 8) = 46."""
    torch.manual_seed(0)
    encoder = ConvEncoder(2).eval()
    image = torch.rand(1, 1, 128, 128, requires_grad=True)
    with torch.enable_grad():
        nn.Sequential(*list(encoder)[:-1])(image)[0, :, 4, 4].sum().backward()
    seen = image.grad[0, 0].nonzero()
    first = 16 * 4 - 15
    assert seen.min(dim=0).values.tolist() == [first, first]
    assert seen.max(dim=0).values.tolist() == [first + 45, first + 45]


def test_a_vector_is_all_that_passes_and_cells_pass_their_own() -> None:
    torch.manual_seed(0)
    vector, spatial = VectorBottleneck(8, 4, 16, 3).eval(), SpatialBottleneck(8, 16, 3).eval()
    features = torch.rand(1, 8, 4, 4, requires_grad=True)
    for bottleneck, cells in ((vector, 16), (spatial, 1)):
        (gradient,) = torch.autograd.grad(bottleneck(features).features[0, :, 1, 2].square().sum(), features)
        assert len(gradient[0].abs().sum(dim=0).nonzero()) == cells
    jacobian = torch.autograd.functional.jacobian(lambda x: vector(x).features.flatten(), features).reshape(128, 128)
    assert np.linalg.matrix_rank(jacobian.numpy(), tol=1e-6) <= 3
    assert vector(features).code.shape == (1, 3)
    assert spatial(features).code.shape == (1, 3, 4, 4)


@torch.no_grad()
def test_the_decoders_last_layer_is_linear_and_the_generators_is_a_tangent_on_the_image_alone() -> None:
    torch.manual_seed(0)
    decoder, generator = ConvDecoder(2, 2).eval(), GlobalDecoder(2, 2, blocks=0)
    decoder[-1].weight.mul_(1000)
    generator.layers[-1].weight.mul_(1000)
    assert decoder(torch.randn(1, 8, 2, 2)).abs().max() > 1
    features = torch.randn(1, 32, 2, 2)
    made, raw = generator(features), generator.layers(features)
    torch.testing.assert_close(made, torch.cat([raw[:, :1].tanh(), raw[:, 1:]], dim=1))
    assert raw[:, 1:].abs().max() > 1


@torch.no_grad()
def test_standardised_weights_by_numpy() -> None:
    torch.manual_seed(0)
    layer = StandardisedConv(2, 3, 3, padding=1, padding_mode="reflect")
    image = torch.rand(1, 2, 5, 5)
    weight = layer.weight.numpy().astype(float)
    padded = np.pad(image[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    expected = np.empty((3, 5, 5))
    for out in range(3):
        filtered = (weight[out] - weight[out].mean()) / (weight[out].std(ddof=1) + 1e-5)
        for row, column in np.ndindex(5, 5):
            window = padded[:, row : row + 3, column : column + 3]
            expected[out, row, column] = (filtered * window).sum() + float(layer.bias[out])
    np.testing.assert_allclose(layer(image)[0].numpy(), expected, atol=1e-5)


def test_groups_are_the_middle_divisor() -> None:
    published = {64: 8, 128: 16, 256: 16, 512: 32, 1024: 32}
    assert {channels: middle_divisor(channels) for channels in published} == published


@torch.no_grad()
def test_the_denoiser_joins_each_level_with_its_own() -> None:
    """With all levels below cut off, what is left is the first level's own path."""
    torch.manual_seed(0)
    network = UNet(4, depth=2)
    image = torch.rand(1, 1, 32, 32)
    first = network.down[0](image)
    network.enlarge[0].weight.zero_()
    network.enlarge[0].bias.zero_()
    expected = network.last(network.up[0](torch.cat([first, torch.zeros_like(first)], dim=1)))
    torch.testing.assert_close(network(image).made, expected)


@pytest.mark.parametrize(("side", "near"), [(100, 96), (16, 32), (0, 32), (250, 256)])
def test_sides_that_cannot_be_halved_are_refused_with_the_nearest(side: int, near: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 16, 32 or more, not {side}: take {near}"):
        check_side(side)
    check_side(near)
    assert math.log2(near) >= 5
