"""PoissonInterpolation's networks counted and applied by hand, its score and map, and what it refuses."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from anomalib_cxr.models import PoissonInterpolation
from anomalib_cxr.models.poisson_interpolation.networks import WideBlock, WideResidualNetwork
from anomalib_cxr.models.poisson_interpolation.torch_model import PoissonInterpolationModel

SIDE = 64


def films(count: int = 3) -> Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)


def build(**arguments: Any) -> PoissonInterpolationModel:
    torch.manual_seed(0)
    small: dict[str, Any] = {"backbone": "test_resnet", "image_size": (SIDE, SIDE)}
    return PoissonInterpolationModel(**small | arguments)


@torch.no_grad()
def test_the_map_is_the_share_and_the_score_its_mean() -> None:
    model, images = build().eval(), films().clone()
    images[1] = images[1] ** 2  # of another mean and deviation
    found = model(images)
    grey = images[:, 0].double().numpy()
    standardised = (grey - grey.mean(axis=(1, 2), keepdims=True)) / grey.std(axis=(1, 2), keepdims=True)
    logits = model.network(torch.from_numpy(standardised).float()[:, None]).double().numpy()
    shares = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(found.anomaly_map.numpy(), shares, rtol=1e-4)
    np.testing.assert_allclose(found.pred_score.numpy(), shares.mean(axis=(1, 2, 3)), rtol=1e-4)
    assert shares.std() > 1e-4


@torch.no_grad()
def test_exposure_and_contrast_do_not_count_and_an_empty_film_is_scored() -> None:
    model, images = build().eval(), films()
    torch.testing.assert_close(model(0.3 * images + 0.5).pred_score, model(images).pred_score, rtol=1e-4, atol=1e-6)
    assert model(torch.full_like(images, 0.7)).pred_score.isfinite().all()


def test_an_untrained_network_guesses_as_many_pixels_as_are_interpolated() -> None:
    model = PoissonInterpolation(image_size=SIDE, backbone="resnet10t", lungs=False)
    (pasted,) = model.pasting(films(400)[:, :1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        guessed = model.model(films(8)).pred_score.mean()
    assert 0.5 < float(guessed / pasted.mask.mean()) < 2


@pytest.mark.parametrize(("layers", "used"), [((1, 2, 3), [64, 128, 256]), ((-1,), [512])])
def test_the_decoder_reads_these_levels_and_every_weight_learns(layers: tuple[int, ...], used: list[int]) -> None:
    network = build(backbone="resnet10t", layers=layers).network
    assert [layer.in_channels for layer in network.lateral] == used
    network(films()[:, :1]).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_of_other_encoders_no_weight_is_idle(backbone: str) -> None:
    network = build(backbone=backbone).network
    maps = network(films()[:, :1])
    assert maps.shape == (3, 1, SIDE, SIDE)
    maps.square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_the_published_network_has_as_many_weights_as_its_layers() -> None:
    widths = [(16, 64), (64, 128), (128, 256), (256, 256), (256, 256), (256, 128), (128, 64), (64, 16), (16, 1)]
    # Two norms of two numbers a channel, two 3 x 3 convolutions and one of 1 x 1, from a to b channels.
    by_hand = 16 * 9 + sum(2 * a + 9 * a * b + 2 * b + 9 * b * b + a * b for a, b in widths)
    network = WideResidualNetwork()
    assert sum(parameter.numel() for parameter in network.parameters()) == by_hand
    seen: list[tuple[int, ...]] = []
    for block in network.modules():
        if isinstance(block, WideBlock):
            block.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape[1:])))
    with torch.no_grad():
        network(torch.rand(1, 1, 32, 32))
    sides = (32, 16, 8, 4, 2, 4, 8, 16, 32)
    assert seen == [(b, side, side) for (_, b), side in zip(widths, sides, strict=True)]
    # He et al. 2015: variance 2 / (inputs of a unit).
    for layer in (network.encoder[2].residual[0], network.encoder[3].residual[4]):
        assert float(layer.weight.detach().var()) == pytest.approx(2 / (9 * layer.in_channels), rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize("scale", ["same", "down", "up"])
def test_a_wide_block_by_hand(scale: str) -> None:
    torch.manual_seed(0)
    block = WideBlock(3, 5, scale).eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 2)
            module.bias.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    features = torch.randn(2, 3, 8, 6)

    def active(maps: Tensor, norm: Any) -> Tensor:
        unit = (maps - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
        return (unit * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)

    def sized(maps: Tensor) -> Tensor:
        if scale == "down":
            return maps[:, :, ::2, ::2]
        return maps.repeat_interleave(2, 2).repeat_interleave(2, 3) if scale == "up" else maps

    first, second = block.residual[0].weight, block.residual[4].weight
    came = active(features, block.activate[0])
    went = sized(torch.conv2d(came, first, padding=1))
    expected = torch.conv2d(active(went, block.residual[2]), second, padding=1)
    expected = expected + sized(torch.conv2d(came, block.around[0].weight))
    torch.testing.assert_close(block(features), expected, rtol=1e-4, atol=1e-5)


def loss_of(model: Any, images: Tensor) -> Tensor:
    batch = ImageBatch(image=images, image_path=[f"{i}.png" for i in range(len(images))])
    return model.training_loss(batch, torch.Generator().manual_seed(5))


def test_linear_blending_is_another_task_from_the_same_draws() -> None:
    model = PoissonInterpolation(image_size=SIDE, backbone="resnet10t", lungs=False)
    linear = PoissonInterpolation(image_size=SIDE, backbone="resnet10t", lungs=False, blend="linear")
    losses = [float(loss_of(each, films(4)).detach()) for each in (model, linear)]
    assert losses[0] != losses[1]
    drawn = [each.pasting.draw(films(4)[:, :1], None, torch.Generator().manual_seed(5)) for each in (model, linear)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_sixty_steps_on_the_same_squares_find_them() -> None:
    torch.manual_seed(0)
    model = PoissonInterpolation(image_size=SIDE, backbone="test_resnet", lungs=False, learning_rate=5e-3)
    coarse = torch.rand(8, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(coarse, SIDE, mode="bicubic").expand(-1, 3, -1, -1)
    optimizer = model.configure_optimizers()["optimizer"]
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model, images).backward()
        optimizer.step()
    standardised = model.model.standardise(images)
    (pasted,) = model.pasting.paste(standardised, None, torch.Generator().manual_seed(5))
    with torch.no_grad():
        shares = model.model.logits(pasted.image).sigmoid()
    assert roc_auc_score((pasted.mask > 0).flatten(), shares.flatten()) >= 0.9


def test_lungs_of_each_film_are_looked_up_by_its_path() -> None:
    model = PoissonInterpolation(image_size=SIDE, backbone="resnet10t")
    left = torch.zeros(4, 1, SIDE, SIDE, dtype=torch.bool)
    left[..., 30, 12] = True
    asked: list[list[str]] = []

    def lookup(paths: list[str], device: torch.device) -> Tensor:
        asked.append(paths)
        return left.to(device)

    model.region_masks = SimpleNamespace(lookup=lookup)
    seen: list[Tensor] = []
    stock = model.pasting.paste
    model.pasting.paste = lambda *given: seen.append(stock(*given)[0].mask) or stock(*given)
    loss_of(model, films(4))
    assert asked == [["0.png", "1.png", "2.png", "3.png"]]
    for mask in seen[0][:, 0]:
        rows, columns = (mask > 0).nonzero().T
        assert rows.min() <= 30 <= rows.max()
        assert columns.min() <= 12 <= columns.max()
        assert columns.max() <= 12 + 0.2 * SIDE + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "best"}, "preset must be one of 'laptop', 'paper', not 'best'"),
        ({"blend": "gradient"}, "blend must be one of 'poisson', 'linear', not 'gradient'"),
        ({"patch_share": (0.3, 0.2)}, r"patch_share must be \(lowest, highest\), but 0.3 is above 0.2"),
        ({"backbone": "resnet_18"}, "timm knows no model 'resnet_18'"),
        ({"image_size": 16}, "image_size must be at least 32, not 16"),
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
        ({"layers": (5,)}, "`layers` must name some of the 5 levels of resnet10t"),
        ({"backbone": "wide_residual", "image_size": 72}, "wants an image_size that is a multiple of 16, not 72"),
        ({"backbone": "wide_residual", "pre_trained": True}, "There are no weights for backbone=wide_residual"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoissonInterpolation(**arguments)


def test_the_paper_blends_what_lies_at_the_same_place() -> None:
    paper = PoissonInterpolation(preset="paper", image_size=SIDE, backbone="test_resnet").pasting
    assert (paper.shift, paper.segmentation, paper.patch_share) == (0, False, (0.05, 0.2))
    ours = PoissonInterpolation(image_size=SIDE, backbone="test_resnet").pasting
    assert (ours.shift, ours.segmentation) == (0.5, True)
