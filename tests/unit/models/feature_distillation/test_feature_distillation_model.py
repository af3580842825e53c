"""The differences against numpy, the student's layout against the paper's, scores and maps made by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models import FeatureDistillation
from anomalib_cxr.models.feature_distillation.differences import place_wise, whole_map_cosine, whole_map_squares
from anomalib_cxr.models.feature_distillation.lightning_model import PRESETS
from anomalib_cxr.models.feature_distillation.student import NarrowStudent
from anomalib_cxr.models.feature_distillation.torch_model import FeatureDistillationModel

TEACHER, STUDENT = (torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def build(**arguments: Any) -> FeatureDistillationModel:
    torch.manual_seed(0)
    return FeatureDistillationModel(**{"teacher": "resnet10t", "pooled": False} | arguments)


def test_differences_are_numpys() -> None:
    cosines, squares, places = (f(TEACHER, STUDENT) for f in (whole_map_cosine, whole_map_squares, place_wise))
    for i, (teacher, student) in enumerate(zip(TEACHER.double().numpy(), STUDENT.double().numpy(), strict=True)):
        cosine = (teacher * student).sum() / np.linalg.norm(teacher) / np.linalg.norm(student)
        assert cosines[i] == pytest.approx(1 - cosine, abs=1e-6)
        assert squares[i] == pytest.approx(((teacher - student) ** 2).mean(), rel=1e-6)
        for row, col in np.ndindex(4, 6):
            a, b = teacher[:, row, col], student[:, row, col]
            expected = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert places[i, 0, row, col] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_student_of_the_right_direction_misses_the_values_alone(factor: float) -> None:
    assert whole_map_cosine(TEACHER, factor * TEACHER).abs().max() < 1e-6
    assert place_wise(TEACHER, factor * TEACHER).abs().max() < 1e-6
    expected = (factor - 1) ** 2 * TEACHER.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(whole_map_squares(TEACHER, factor * TEACHER), expected)


def test_the_student_of_vgg_is_the_papers_cloner() -> None:
    student = NarrowStudent({4: 128, 8: 256, 16: 512, 32: 512})
    widths = [[layer.out_channels for layer in stage if isinstance(layer, nn.Conv2d)] for stage in student.stages]
    assert widths == [[16, 16], [16, 128], [16, 16, 256], [16, 16, 512], [16, 16, 512]]
    for stage in student.stages:
        kinds = [type(layer) for layer in stage]
        inner = (len(kinds) - 3) // 3
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * inner + [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    for layer in (layer for layer in student.modules() if isinstance(layer, nn.Conv2d)):
        assert layer.bias is None
        xavier = (6 / (9 * (layer.in_channels + layer.out_channels))) ** 0.5
        assert 0.9 * xavier < layer.weight.abs().max() <= xavier
    assert [tuple(level.shape[1:]) for level in student(torch.rand(1, 1, 64, 64))] == [
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 2, 2),
    ]


@torch.no_grad()
def test_the_student_of_a_teacher_of_both_signs_can_have_both() -> None:
    model = build(teacher="test_efficientnet").eval()
    targets = model.targets(torch.rand(2, 1, 64, 64))
    assert min(float(level.min()) for level in targets) < 0
    for _, learnt in model.pairs(torch.rand(2, 1, 64, 64)):
        assert learnt.min() < 0 < learnt.max()
    rectified = build().eval()
    assert min(float(learnt.min()) for _, learnt in rectified.pairs(torch.rand(2, 1, 64, 64))) == 0


def test_the_teacher_stays_as_it_is() -> None:
    model = build().train()
    assert all(module.training for module in model.student.modules())
    assert not any(module.training for module in model.teacher.modules())
    sum(model.losses(torch.rand(2, 3, 64, 64)).values()).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.student.parameters())


def by_hand(model: FeatureDistillationModel, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Teacher's and student's maps of the levels that score, layer by layer."""
    grey = images.mean(dim=1, keepdim=True)
    seen = (grey - model.teacher.mean) / model.teacher.std
    levels = model.teacher.model.forward_intermediates(seen, indices=[0, 1, 2], intermediates_only=True)
    hidden, learnt = seen, []
    for stage in model.student.stages:
        for layer in stage:
            hidden = layer(hidden)
        learnt.append(hidden)
    pooling = nn.MaxPool2d(2) if model.pooled else nn.Identity()
    return list(zip(map(pooling, levels[1:]), learnt[-2:], strict=True))


def cosine_distance(teacher: Tensor, student: Tensor) -> Tensor:
    products = (teacher * student).sum(dim=1, keepdim=True)
    return 1 - products / teacher.norm(dim=1, keepdim=True) / student.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("pooled", "normalise"), [(False, True), (True, False)])
@torch.no_grad()
def test_score_and_map_are_of_all_levels_but_the_finest(pooled: bool, normalise: bool) -> None:
    model = build(pooled=pooled, normalise=normalise, layers=(0, 1, 2), mse_weight=0.3).eval()
    assert (float(model.teacher.mean), float(model.teacher.std)) == ((0.5, 0.5) if normalise else (0, 1))
    images = torch.rand(2, 3, 64, 64)
    score, anomaly_map = torch.zeros(2), torch.zeros(2, 1, 64, 64)
    for teacher, student in by_hand(model, images):
        a, b = teacher.flatten(1), student.flatten(1)
        score += 1 - (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1) + 0.3 * (a - b).square().mean(dim=1)
        anomaly_map += F.interpolate(cosine_distance(teacher, student), 64, mode="bilinear") / 2
    found = model(images)
    torch.testing.assert_close(found.pred_score, score)
    torch.testing.assert_close(found.anomaly_map, anomaly_map, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_relative_scores_are_in_deviations_of_normal_images_at_each_place() -> None:
    model = build(layers=(0, 1, 2), relative=True).eval()
    normal, images = torch.rand(5, 3, 64, 64), torch.rand(2, 3, 64, 64)
    model.fit(model.differences(normal))
    score, anomaly_map = torch.zeros(2), torch.zeros(2, 1, 64, 64)
    for known, asked in zip(by_hand(model, normal), by_hand(model, images), strict=True):
        usual, level = cosine_distance(*known), cosine_distance(*asked)
        deviation = usual.std(dim=0)
        level = (level - usual.mean(dim=0)) / (deviation + 0.1 * deviation.mean())
        score += level.mean(dim=(1, 2, 3)) / 2
        anomaly_map += F.interpolate(level, 64, mode="bilinear") / 2
    found = model(images)
    torch.testing.assert_close(found.pred_score, score, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.anomaly_map, anomaly_map, rtol=1e-3, atol=1e-2)


def test_the_paper_preset_is_salehis() -> None:
    """CVPR 2021 and its published code; with another teacher, for VGG-16 takes half a gigabyte."""
    assert (PRESETS["paper"]["teacher"], PRESETS["paper"]["layers"]) == ("vgg16", (1, 2, 3, 4))
    model = FeatureDistillation(preset="paper", teacher="resnet10t", pre_trained=False, layers=(0, 1, 2, 3))
    optimizer = model.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.Adam
    assert {(group["lr"], group["weight_decay"], group["betas"]) for group in optimizer.param_groups} == {
        (1e-3, 0.0, (0.9, 0.999))
    }
    assert (model.max_steps, model.lr_schedule, model.checkpoint) == (200 * 79, "constant", "last")
    assert (model.input_size, model.model.mse_weight, model.model.pooled) == ((128, 128), 0.01, True)


def test_faults_name_themselves() -> None:
    small = {"teacher": "resnet10t", "pre_trained": False}
    for arguments, message in (
        ({"layers": [3]}, "layers must name two levels or more"),
        ({"teacher": "test_vit"}, "levels that halve the image stage by stage"),
        ({"width": 0}, "width must be at least 1"),
        ({"mse_weight": -1}, "mse_weight must be 0 or more"),
        ({"image_size": 100}, "image_size must be a multiple of 32"),
        ({"teacher": "resnet10"}, "timm knows no model 'resnet10'"),
        ({"preset": "best"}, "preset must be one of 'laptop', 'paper'"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureDistillation(**small | arguments)
