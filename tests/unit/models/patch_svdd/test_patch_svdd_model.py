"""Pairs of patches counted, encoders patch by patch, the search against scikit-learn and the map against a loop."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional as F

from anomalib_cxr.models import PatchSVDD
from anomalib_cxr.models.patch_svdd.encoders import PatchEncoders
from anomalib_cxr.models.patch_svdd.tasks import DIRECTIONS, cut, draw_neighbours, draw_shifted, jitter
from anomalib_cxr.models.patch_svdd.torch_model import PatchSVDDModel

COUNT = 16_000
#: Of patches of 32 and of 64 pixels; neither reaches the last pixel of 130.
STRIDES = (12, 20)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def assert_inside(corners: Tensor, size: int, height: int, width: int) -> None:
    """All within, and at every border some."""
    assert corners.min(dim=0).values.tolist() == [0, 0]
    assert corners.max(dim=0).values.tolist() == [height - size, width - size]


@pytest.mark.parametrize("size", [32, 64])
def test_neighbours_lie_where_their_label_says_each_direction_as_often(size: int) -> None:
    height, width = 2 * size, 2 * size + 30
    first, second, labels = draw_neighbours(COUNT, size, (height, width), generator())
    for corners in (first, second):
        assert_inside(corners, size, height, width)
    counts = labels.bincount(minlength=8)
    assert (counts - COUNT / 8).abs().max() < 4 * (COUNT * 7 / 64) ** 0.5
    assert len({tuple(direction) for direction in DIRECTIONS.tolist()}) == 8
    reaches = list(range(size * 3 // 4, size))
    for label, (down, right) in enumerate(DIRECTIONS.tolist()):
        moved = (second - first)[labels == label]
        for axis, sign in enumerate((down, right)):
            assert sorted({int(value) for value in sign * moved[:, axis]}) == (reaches if sign else [0])
        assert (moved[:, 0].abs() != moved[:, 1].abs()).any(), "each axis has a reach of its own"


@pytest.mark.parametrize(("size", "most"), [(32, 1), (64, 2)])
def test_shifted_patches_are_a_32nd_of_their_side_away_at_most(size: int, most: int) -> None:
    first, second, _ = draw_shifted(COUNT, size, (size + 7, size + 5), generator())
    for corners in (first, second):
        assert_inside(corners, size, size + 7, size + 5)
    moved = second - first
    values, counts = moved.unique(return_counts=True)
    assert values.tolist() == list(range(-most, most + 1))
    share = 1 / len(values)
    assert (counts / moved.numel() - share).abs().max() < 4 * (share / moved.numel()) ** 0.5


def test_patches_are_cut_where_they_lie() -> None:
    images = torch.arange(2 * 7 * 9.0).reshape(2, 1, 7, 9)
    found = cut(images, torch.tensor([[1, 2], [3, 5]]), 4)
    assert torch.equal(found[0, 0], images[0, 0, 1:5, 2:6])
    assert torch.equal(found[1, 0], images[1, 0, 3:7, 5:9])


def test_jitter_is_of_patches_and_of_pixels() -> None:
    noise = jitter(torch.zeros(4000, 1, 8, 8), generator())
    means = noise.mean(dim=(1, 2, 3))
    assert float(noise.std()) == pytest.approx(0.02 * 2**0.5, rel=0.05)
    assert float(means.std()) == pytest.approx(0.02 * (1 + 1 / 64) ** 0.5, rel=0.05)
    assert abs(float(noise.mean())) < 2e-3


@torch.no_grad()
def test_large_patches_are_coded_from_their_quarters() -> None:
    encoders = PatchEncoders()
    patches = torch.rand(2, 1, 64, 64)
    quarters = [encoders(patches[..., i : i + 32, j : j + 32], 32)[..., 0, 0] for i in (0, 32) for j in (0, 32)]
    first, _, second, _ = encoders.large
    hidden = sum(
        quarter @ first.weight[:, :, i, j].T for quarter, (i, j) in zip(quarters, np.ndindex(2, 2), strict=True)
    )
    hidden = F.leaky_relu(hidden + first.bias, 0.1)
    expected = torch.tanh(hidden @ second.weight[:, :, 0, 0].T + second.bias)
    torch.testing.assert_close(encoders(patches, 64)[..., 0, 0], expected)


@torch.no_grad()
def test_the_small_encoder_is_the_published_one() -> None:
    encoder = PatchEncoders().small
    widths = [1, 32, 64, 128, 128, 64, 32, 32, 64]
    hidden = images = torch.rand(1, 1, 32, 32)
    convolutions = [layer for layer in encoder if hasattr(layer, "weight")]
    assert len(convolutions) == 8
    for number, (layer, a, b) in enumerate(zip(convolutions, widths, widths[1:], strict=False)):
        assert layer.weight.shape == (b, a, 3, 3)
        hidden = F.conv2d(hidden, layer.weight, layer.bias, stride=1 if number else 2)
        hidden = torch.tanh(hidden) if number == 7 else torch.where(hidden > 0, hidden, 0.1 * hidden)
    torch.testing.assert_close(encoder(images), hidden)
    assert hidden.shape == (1, 64, 1, 1)


def build(**arguments: Any) -> PatchSVDDModel:
    torch.manual_seed(0)
    model = PatchSVDDModel(**{"image_size": (128, 130), "strides": STRIDES, "width": 8} | arguments).eval()
    model.mean_image = images(1)[0, :1]
    return model


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 128, 130, generator=torch.Generator().manual_seed(seed))


def places(size: int) -> list[list[int]]:
    """First rows and first columns of the patches of 128 × 130 pixels; the last one ends at the border."""
    stride = STRIDES[size == 64]
    return [sorted({*range(0, side - size + 1, stride), side - size}) for side in (128, 130)]


@torch.no_grad()
def codes_by_hand(model: PatchSVDDModel, images: Tensor, size: int) -> np.ndarray:
    """Code of each patch by itself, (B, rows, cols, 64)."""
    tops, lefts = places(size)
    grey = images.mean(dim=1, keepdim=True) - model.mean_image
    codes = [[model.encoders(grey[..., t : t + size, s : s + size], size)[..., 0, 0] for s in lefts] for t in tops]
    return torch.stack([torch.stack(row, 1) for row in codes], 1).double().numpy()


def test_codes_of_whole_images_are_those_patch_by_patch() -> None:
    model, films = build(), images(1, seed=1)
    for size, found in zip((32, 64), model.codes(films), strict=True):
        np.testing.assert_allclose(found.detach().numpy(), codes_by_hand(model, films, size), atol=1e-5)


def nearest(known: np.ndarray, asked: np.ndarray, reach: int | None) -> np.ndarray:
    """Distance of each patch to the nearest reference within a reach of rows and columns, (B, rows, cols)."""
    rows, cols = known.shape[1:3]
    found = np.empty(asked.shape[:-1])
    for row, col in np.ndindex(rows, cols):
        near = (
            known
            if reach is None
            else known[:, max(0, row - reach) : row + reach + 1, max(0, col - reach) : col + reach + 1]
        )
        search = NearestNeighbors(n_neighbors=1).fit(near.reshape(-1, 64))
        found[:, row, col] = search.kneighbors(asked[:, row, col])[0][:, 0]
    return found


@pytest.mark.parametrize(("fusion", "reach"), [("product", None), ("sum", 1)])
@torch.no_grad()
def test_maps_are_mean_distances_of_the_patches_over_each_pixel_and_the_score_their_maximum(
    fusion: Any, reach: int | None
) -> None:
    model, normal, asked = build(fusion=fusion, patch_distance=reach), images(3, seed=1), images(2, seed=2)
    model.fit(model.codes(normal))
    maps = []
    for size in (32, 64):
        tops, lefts = places(size)
        known, queries = (model.codes(films)[size == 64].double().numpy() for films in (normal, asked))
        distances = nearest(known, queries, reach)
        total, count = np.zeros((2, 128, 130)), np.zeros((128, 130))
        for (row, top), (col, left) in ((r, c) for r in enumerate(tops) for c in enumerate(lefts)):
            total[:, top : top + size, left : left + size] += distances[:, row, col, None, None]
            count[top : top + size, left : left + size] += 1
        maps.append(total / count)
    expected = maps[0] * maps[1] if fusion == "product" else maps[0] + maps[1]
    found = model(asked)
    np.testing.assert_allclose(found.anomaly_map[:, 0].numpy(), expected, rtol=1e-3)
    np.testing.assert_allclose(found.pred_score.numpy(), expected.max(axis=(1, 2)), rtol=1e-3)


@torch.no_grad()
def test_films_that_join_the_bank_are_normal_from_then_on() -> None:
    model, normal, other = build(), images(2, seed=1), images(1, seed=2)
    model.fit(model.codes(normal))
    assert float(model(other).anomaly_map.min()) > 1e-6
    model.extend(model.codes(other))
    assert float(model(other).pred_score) == 0
    assert float(model(normal).pred_score.max()) == 0


@pytest.mark.parametrize("size", [32, 64])
def test_losses_of_each_size_are_the_papers(size: int) -> None:
    model = build(patch_sizes=(size,), strides=(16,), svdd_weight=0.3)
    films = images(5, seed=1)
    found = model.losses(films, generator())
    drawn = generator()
    grey = films.mean(dim=1, keepdim=True) - model.mean_image
    neighbours = draw_neighbours(5, size, (128, 130), drawn)
    patches = [
        grey[number, :, top : top + size, left : left + size]
        for corners in (neighbours.first, neighbours.second)
        for number, (top, left) in enumerate(corners.tolist())
    ]
    codes = model.encoders(jitter(torch.stack(patches), drawn), size)[..., 0, 0]
    difference = codes[:5] - codes[5:]
    for layer in (0, 2, 4):
        linear = model.classifiers[0][layer]
        difference = difference @ linear.weight.T + linear.bias
        if layer < 4:
            difference = torch.where(difference > 0, difference, 0.1 * difference)
    shares = difference.exp() / difference.exp().sum(dim=1, keepdim=True)
    expected = -sum(share[label].log() for share, label in zip(shares, neighbours.labels.tolist(), strict=True)) / 5
    torch.testing.assert_close(found[f"position_{size}"], expected)
    shifted = draw_shifted(5, size, (128, 130), drawn)
    apart = []
    for number, ((top, left), (below, right)) in enumerate(
        zip(shifted.first.tolist(), shifted.second.tolist(), strict=True)
    ):
        one = model.encoders(grey[number : number + 1, :, top : top + size, left : left + size], size)
        other = model.encoders(grey[number : number + 1, :, below : below + size, right : right + size], size)
        apart.append((one - other).square().sum().sqrt())
    torch.testing.assert_close(found[f"svdd_{size}"], 0.3 * torch.stack(apart).mean())


def test_fresh_weights_tell_patches_apart_already() -> None:
    with torch.no_grad():
        small, large = build().codes(images(1, seed=1))
    for codes in (small, large):
        assert float(codes.flatten(0, 2).std(dim=0).mean()) > 0.05


def test_the_paper_preset_is_yi_and_yoons() -> None:
    model = PatchSVDD(preset="paper")
    optimizer = model.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.Adam
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(1e-4, 0.0)}
    assert (model.input_size, model.model.patch_sizes, model.model.svdd_weight) == ((256, 256), (32, 64), 1.0)
    assert [bank.search.patch_distance for bank in model.model.banks] == [None, None]
    assert model.model.encoders.small[0].out_channels == 32
    assert [grid.stride for grid in model.model.grids] == [4, 16]
    assert (model.lr_schedule, model.checkpoint, model.model.fusion) == ("constant", "last", "product")
    # 300 epochs of 100 pairs of each of 240 images, 64 a step.
    assert model.max_steps * 64 == 300 * 100 * 240


def test_strides_are_sixteen_unless_given() -> None:
    assert [grid.stride for grid in PatchSVDD().model.grids] == [16, 16]
    assert [grid.stride for grid in PatchSVDD(preset="paper", patch_sizes=(64, 32)).model.grids] == [16, 4]
    assert [grid.stride for grid in PatchSVDD(patch_sizes=(32,), strides=(6,)).model.grids] == [6]


def test_faults_name_themselves() -> None:
    for arguments, message in (
        ({"patch_sizes": (16, 32)}, r"patch_sizes must be of 32 and 64, each at most once, not \(16, 32\)"),
        ({"patch_sizes": (32, 32)}, "patch_sizes must be of 32 and 64, each at most once"),
        ({"strides": (7, 16)}, r"strides must be even, one for each of patch_sizes=\(32, 64\) and no larger than it"),
        ({"strides": (34, 16)}, "strides must be even"),
        ({"strides": (16,)}, "strides must be even, one for each"),
        ({"image_size": 96}, "image_size must be even, and at least 128"),
        ({"image_size": 129}, "image_size must be even, and at least 128 .* not 129"),
        ({"svdd_weight": -1}, "svdd_weight must be 0 or more, not -1"),
        ({"width": 0}, "width must be 1 or more, not 0"),
        ({"fusion": "mean"}, "fusion must be one of 'product', 'sum'"),
        ({"patch_distance": -2}, "patch_distance must be 0 or more, or -1 for the whole image, not -2"),
        ({"preset": "best"}, "preset must be one of 'laptop', 'paper'"),
    ):
        with pytest.raises(ValueError, match=message):
            PatchSVDD(**arguments)
