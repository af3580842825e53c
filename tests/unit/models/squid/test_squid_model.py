"""The networks' layers by hand, who learns from what, score and map, and what the published setting is."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models import SQUID
from anomalib_cxr.models.squid.convolutions import TripleConv
from anomalib_cxr.models.squid.torch_model import SQUIDModel

TINY: dict[str, Any] = {"image_size": 32, "width": 2, "slots": 8}


def build(**arguments: Any) -> SQUIDModel:
    torch.manual_seed(0)
    return SQUIDModel(**TINY | arguments)


@torch.no_grad()
def test_three_convolutions_of_which_two_are_a_residual() -> None:
    torch.manual_seed(0)
    block, maps = TripleConv(3, 5, stride=2).eval(), torch.randn(2, 3, 8, 8)
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(value)

    def normed(hidden: Tensor, convolution: nn.Conv2d, norm: nn.BatchNorm2d, stride: int = 1) -> Tensor:
        hidden = F.conv2d(hidden, convolution.weight, stride=stride, padding=1)
        unit = (hidden - norm.running_mean[:, None, None]) / (1 + 1e-5) ** 0.5
        return unit * norm.weight[:, None, None] + norm.bias[:, None, None]

    first = normed(maps, block.first[0], block.first[1], 2).clamp(min=0)
    inner = normed(first, block.residual[0], block.residual[1]).clamp(min=0)
    expected = (first + normed(inner, block.residual[3], block.residual[4])).clamp(min=0)
    torch.testing.assert_close(block(maps), expected)


def triple(before: int, after: int) -> int:
    """Parameters of three convolutions 3 × 3 without bias, each with a scale and a shift."""
    return 9 * before * after + 2 * 9 * after * after + 3 * 2 * after


def test_parameters_of_the_published_size_counted_by_hand() -> None:
    with torch.device("meta"):
        model = SQUIDModel()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    decoder = triple(512 + 256, 256) + triple(256 + 128, 128) + triple(128, 64) + triple(64, 32) + 33
    attention = 4 * (2048 + 1) * 2048
    feed_forward = 2049 * 512 + 513 * 2048
    convolutions = [1, 16, 32, 64, 128, 128]
    assert counts == {
        "encoder": triple(1, 32) + triple(32, 64) + triple(64, 128) + triple(128, 256) + triple(256, 512),
        "inpainting": 513 * 128 + attention + feed_forward + 2 * 2 * 2048 + (128 + 3) * 512 + 2 * 512,
        "student": decoder + 4 * 200 * (256 * 16 + 128 * 64),
        "teacher": decoder,
        "discriminator": sum(25 * a * b for a, b in pairwise(convolutions))
        + 16  # the first convolution's bias
        + 2 * (32 + 64 + 128 + 128)
        + 128 * 16
        + 1,
    }
    assert model.inpainting.queue.slots.shape == (4, 200, 2048)


def gradients(model: SQUIDModel, loss: Tensor) -> dict[str, bool]:
    """Which parts of a model a loss teaches."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name: any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
        for name, part in model.named_children()
    }


def test_who_learns_from_which_term() -> None:
    model, films = build().train(), torch.rand(3, 1, 32, 32)
    terms = model.losses(films, torch.Generator().manual_seed(0), makes=True)
    parts = ("encoder", "inpainting", "student", "teacher", "discriminator")
    for term, learners in (
        ("student", {"encoder", "inpainting", "student"}),
        ("teacher", {"teacher"}),
        ("distillation", {"encoder", "inpainting", "student", "teacher"}),
        ("adversarial", {"encoder", "inpainting", "student"}),
        ("discriminator", {"discriminator"}),
    ):
        assert gradients(model, terms[term]) == {part: part in learners for part in parts}, term


def test_only_the_discriminator_learns_in_between_and_the_queue_is_left_alone() -> None:
    model, films = build().train(), torch.rand(3, 1, 32, 32)
    queue, statistics = model.inpainting.queue, model.encoder.start.first[1]
    before = queue.slots.clone()
    terms = model.losses(films, torch.Generator().manual_seed(0), makes=False)
    assert terms.keys() == {"discriminator"}
    assert gradients(model, terms["discriminator"]) == {
        "encoder": False, "inpainting": False, "student": False, "teacher": False, "discriminator": True,
    }  # fmt: skip
    assert torch.equal(queue.slots, before)
    assert statistics.num_batches_tracked == 1
    model.losses(films, torch.Generator().manual_seed(0), makes=True)
    assert int(queue.position) == 3
    assert (queue.slots != before).any(dim=2).sum(dim=1).tolist() == [3, 3, 3, 3]


def test_the_queue_gets_what_the_step_has_seen() -> None:
    model, films = build().train(), torch.rand(3, 1, 32, 32)
    expected = model.see(films, torch.Generator().manual_seed(0)).features
    model.losses(films, torch.Generator().manual_seed(0), makes=True)
    torch.testing.assert_close(model.inpainting.queue.slots[:, :3], expected.detach().transpose(0, 1))


@torch.no_grad()
def test_score_and_map_by_hand() -> None:
    model, images = build().eval(), torch.rand(3, 3, 32, 32)
    grey = images.mean(dim=1, keepdim=True)
    made = model.see(grey).student.films
    found = model(images)
    torch.testing.assert_close(found.anomaly_map, (made - grey).abs())
    torch.testing.assert_close(found.pred_score, -model.discriminator(made))
    assert found.pred_score.std() > 0


@torch.no_grad()
def test_a_film_is_scored_the_same_in_any_batch_and_each_time() -> None:
    model, images = build().eval(), torch.rand(4, 3, 32, 32)
    whole = model(images)
    for size in (1, 3):
        parts = [model(part) for part in images.split(size)]
        torch.testing.assert_close(torch.cat([part.pred_score for part in parts]), whole.pred_score)
        torch.testing.assert_close(torch.cat([part.anomaly_map for part in parts]), whole.anomaly_map)


def test_the_paper_preset_is_xiangs() -> None:
    """CVPR 2023 and its published code."""
    model = SQUID(preset="paper")
    optimizer = model.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.Adam
    makes, judges = optimizer.param_groups
    assert {(group["initial_lr"], group["betas"]) for group in (makes, judges)} == {(1e-4, (0.5, 0.999))}
    assert (makes["eps"], makes["weight_decay"]) == (1e-7, 1e-5)
    assert (judges["eps"], judges["weight_decay"]) == (1e-8, 0.0)
    assert (model.max_steps, model.checkpoint, model.input_size) == (200 * 78, "best", (128, 128))
    assert (model.shift, model.scale) == (0.05, 0.05)
    assert model.rate_at(0) == 1.0
    assert model.rate_at(15_600) == pytest.approx(0.1 + 0.9 * 0.25)  # cos 120° = −½
    inpainting = model.model.inpainting
    assert (inpainting.queue.top, inpainting.shortcut, inpainting.attention.num_heads) == (5, 0.05, 8)
    assert [(memory.top, memory.shortcut) for memory in model.model.student.memories] == [(5, 0.05)] * 2


def test_the_discriminator_has_a_rate_of_its_own() -> None:
    model = SQUID(**TINY, learning_rate=1e-2, discriminator_learning_rate=1e-5)
    makes, judges = model.configure_optimizers()["optimizer"].param_groups
    assert (makes["initial_lr"], judges["initial_lr"]) == (1e-2, 1e-5)
    assert judges["params"] == list(model.model.discriminator.parameters())
    assert len(makes["params"]) + len(judges["params"]) == len(list(model.parameters()))


def test_faults_name_themselves() -> None:
    for arguments, message in (
        ({"image_size": 100}, "image_size must be a multiple of 32 for grid=2, not 100: take 96"),
        ({"image_size": 16}, "image_size must be a multiple of 32 for grid=2, not 16: take 32"),
        ({"grid": 1}, "grid must be 2 or more"),
        ({"width": 0}, "width must be 1 or more"),
        ({"width": 3}, "make width an even number"),
        ({"top": 1}, "top must lie between 2 and slots=8"),
        ({"top": 9}, "top must lie between 2 and slots=8"),
        ({"shortcut": 1.0}, r"shortcut must lie in \[0, 1\)"),
        ({"shift": 0.6}, "shift must lie within"),
        ({"scale": -0.1}, "scale must lie within"),
        ({"discriminator_learning_rate": 0.0}, "discriminator_learning_rate must be positive"),
        ({"preset": "best"}, "preset must be one of 'laptop', 'paper'"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"lr_schedule": "linear"}, "lr_schedule must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            SQUID(**TINY | arguments)
