"""What AnatPaste's training step is made of: films, lungs, pasting, labels, head, rates; each against the paper."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch
from detector_cases import CASES, ThreeFilms, film
from torch import Tensor, nn

from anomalib_cxr.anatomy import RegionMasks, segment_lungs
from anomalib_cxr.augmentations import AnatPasteAugmentation
from anomalib_cxr.models import AnatPaste
from anomalib_cxr.models.anat_paste.torch_model import AnatPasteModel

(CASE,) = (case for case in CASES if case.detector is AnatPaste)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> ImageBatch:
    """The three normal films, as the datamodule gives them but for their order."""
    paths = list(ThreeFilms(tmp_path_factory.mktemp("films")).make_samples()["image_path"][:3])[::-1]
    return ImageBatch(image=torch.stack([film(path) for path in paths]).expand(-1, 3, -1, -1), image_path=paths)


def detector(batch: ImageBatch, **arguments: Any) -> Any:
    """The detector, with the lungs of the films."""
    model = CASE.make(**arguments)
    if model.needs_region:
        model.region_masks = RegionMasks.compute(sorted(batch.image_path), (64, 64), num_workers=0, progress=False)
    return model


class Watched:
    """Takes notes of a step: what the pasting gets and gives, what the first layer and the loss get."""

    def __init__(self, model: Any, batch: ImageBatch, seed: int = 0) -> None:
        self.normal: Tensor
        self.region: Tensor | None
        stock = model.pasting.paste

        def noted(images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None):
            self.normal, self.region = images, region
            self.pasted = stock(images, region, generator)
            return self.pasted

        model.pasting.paste = noted
        first = next(module for module in model.model.backbone.modules() if isinstance(module, nn.Conv2d))
        hooks = [
            first.register_forward_hook(lambda _module, inputs, _output: setattr(self, "inputs", inputs[0])),
            model.model.classifier.register_forward_hook(lambda _m, _i, output: setattr(self, "logits", output)),
        ]
        self.loss = model.training_loss(batch, torch.Generator().manual_seed(seed))
        for hook in hooks:
            hook.remove()
        del model.pasting.paste


def test_network_sees_normal_and_pasted_films_between_minus_one_and_one(batch: ImageBatch) -> None:
    step = Watched(detector(batch), batch)
    torch.testing.assert_close(step.inputs, 2 * torch.cat([step.normal, step.pasted[0].image]) - 1)
    assert -1 <= step.inputs.min() < -0.3
    assert 0.3 < step.inputs.max() <= 1


def test_normal_films_come_first_and_are_labelled_so(batch: ImageBatch) -> None:
    model = detector(batch)
    step = Watched(model, batch)
    logits = step.logits.detach()
    by_label = [logits.logsumexp(1)[row] - logits[row, label] for row, label in enumerate([0, 0, 0, 1, 1, 1])]
    assert step.loss.item() == pytest.approx(torch.stack(by_label).mean().item(), rel=1e-5)
    # Named in the other order, or in turn, they would cost another loss.
    for wrong in ([1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1]):
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(wrong))
        assert abs(loss.item() - step.loss.item()) > 1e-3


def test_three_classes_are_labelled_film_after_film(batch: ImageBatch) -> None:
    step = Watched(detector(batch, variant="cutpaste_3way"), batch)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert step.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(step.logits, labels).item())
    pasted = [2 * paste.image - 1 for paste in step.pasted]
    torch.testing.assert_close(step.inputs, torch.cat([2 * step.normal - 1, *pasted]))


def test_something_is_pasted_into_the_lungs_of_its_own_film(batch: ImageBatch) -> None:
    step = Watched(detector(batch), batch)
    lungs = [torch.from_numpy(segment_lungs(film(path)[0].numpy())) for path in batch.image_path]
    assert step.region is not None
    for found, own in zip(step.region[:, 0], lungs, strict=True):
        assert torch.equal(found, own)
        assert sum(torch.equal(found, other) for other in lungs) == 1  # no two films have the same
    for changed, own in zip((step.pasted[0].image != step.normal)[:, 0], lungs, strict=True):
        assert changed.any()
        assert not (changed & ~own).any()


def test_lungs_of_a_fit_are_kept_by_the_path_of_their_film(tmp_path: Path) -> None:
    model = CASE.make()
    data = ThreeFilms(tmp_path)
    data.setup("fit")
    model._trainer = SimpleNamespace(datamodule=data, is_global_zero=False)
    model._find_region()
    for path in data.train_data.samples["image_path"]:
        assert torch.equal(
            model.region_masks.lookup([path])[0, 0], torch.from_numpy(segment_lungs(film(path)[0].numpy()))
        )


def test_intensities_of_normal_and_pasted_films_are_jittered_alike(batch: ImageBatch) -> None:
    step = Watched(detector(batch, variant="cutpaste_normal"), batch)
    plain = torch.stack([film(path) for path in batch.image_path])
    assert all((jittered - one).abs().mean() > 1e-3 for jittered, one in zip(step.normal, plain, strict=True))
    (pasted,) = step.pasted
    elsewhere = pasted.mask == 0
    assert elsewhere.float().mean() > 0.5
    torch.testing.assert_close(pasted.image[elsewhere], step.normal[elsewhere])
    # Each film by its own factors, no more than a tenth: nothing but brightness and contrast, so one line each.
    slopes = []
    for jittered, one in zip(step.normal, plain, strict=True):
        inner = (jittered > 0) & (jittered < 1)
        x, y = one[inner].double(), jittered[inner].double()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        torch.testing.assert_close(y, y.mean() + slope * (x - x.mean()), rtol=0, atol=1e-5)
        slopes.append(slope.item())
    assert len(set(slopes)) == 3
    assert all(0.9**2 <= slope <= 1.1**2 for slope in slopes)


def test_jitter_is_the_published_tenth_and_can_be_switched_off(batch: ImageBatch) -> None:
    assert CASE.make().color_jitter == 0.1
    step = Watched(detector(batch, color_jitter=0.0), batch)
    torch.testing.assert_close(step.normal, batch.image[:, :1])


def test_blur_is_on_unless_switched_off(batch: ImageBatch) -> None:
    """The weights of a sharp shape have one value inside; blurred ones fall off."""
    levels = {}
    for blur in (True, False):
        (pasted,) = Watched(detector(batch, blur=blur, segmentation=False), batch).pasted
        levels[blur] = [len(mask[mask > 0].unique()) for mask in pasted.mask]
    assert max(levels[False]) == 1
    assert max(levels[True]) > 10
    assert CASE.make().pasting.blur


def test_segmentation_is_on_unless_switched_off(batch: ImageBatch) -> None:
    inside, outside = detector(batch), detector(batch, segmentation=False)
    assert inside.needs_region
    assert not outside.needs_region
    assert (inside.pasting.segmentation, outside.pasting.segmentation) == (True, False)
    lungs = RegionMasks.compute(batch.image_path, (64, 64), num_workers=0, progress=False).lookup(batch.image_path)
    left = dict.fromkeys((inside, outside), 0)
    for model in left:
        for seed in range(4):
            step = Watched(model, batch, seed)
            left[model] += int((step.pasted[0].mask[~lungs] > 0).sum())
    assert left[inside] == 0
    assert left[outside] > 100


def test_pasting_is_the_papers() -> None:
    """Sato et al., method section: area 0.02 to 0.15, aspect 0.3 to 1/0.3, jitter 0.1, blur radius 0 to 15."""
    for pasting in (AnatPaste(num_workers=0).pasting, AnatPasteAugmentation()):
        assert pasting.area == (0.02, 0.15)
        assert pasting.aspect == pytest.approx((0.3, 1 / 0.3))
        assert (pasting.jitter, pasting.margin, pasting.sigma) == (0.1, 10, (0, 15))
        assert pasting.value == pytest.approx((0.59, 1.0), abs=0.01)


@pytest.mark.parametrize("hidden", [0, 1, 3])
def test_head_is_linear_norm_and_relu_of_512_units_each_then_128(hidden: int) -> None:
    torch.manual_seed(0)
    model = AnatPasteModel("resnet10t", head_layers=hidden)
    pooled = torch.randn(7, model.backbone.num_features)
    expected, weights = pooled, dict(model.head.named_parameters())
    widths = []
    for layer in range(0, 3 * hidden + 3, 3):
        expected = expected @ weights[f"{layer}.weight"].T
        expected = ((expected - expected.mean(0)) / (expected.var(0, correction=0) + 1e-5).sqrt()).clamp(min=0)
        widths.append(expected.shape[1])
    assert widths == [512] * hidden + [128]
    found = model.head(pooled)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.min() == 0
    assert len(list(model.head)) == 3 * hidden + 3
    assert model.classifier.in_features == 128


def test_default_head_has_one_hidden_layer_and_the_density_bandwidth_one() -> None:
    model = AnatPaste(num_workers=0)
    assert [m.out_features for m in model.model.head if isinstance(m, nn.Linear)] == [512, 128]
    assert model.model.density.bandwidth == 1.0
    assert CASE.make(bandwidth=0.25).model.density.bandwidth == 0.25


def test_score_is_the_log_density_of_kernels_of_the_bandwidth(batch: ImageBatch) -> None:
    scores = {}
    for bandwidth in (1.0, 0.25):
        model = CASE.make(bandwidth=bandwidth).eval().model
        with torch.no_grad():
            model.fit(*model.references(batch.image))
            scores[bandwidth] = model(batch.image.flip(3)).pred_score
            units = torch.nn.functional.normalize(model.embed(batch.image), dim=1).double()
            asked = torch.nn.functional.normalize(model.embed(batch.image.flip(3)), dim=1).double()
        for score, one in zip(scores[bandwidth], asked, strict=True):
            kernels = [math.exp(-float((one - unit).square().sum()) / (2 * bandwidth**2)) for unit in units]
            assert float(score) == pytest.approx(-math.log(sum(kernels) / 3), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0), ("constant", 0), ("cosine", 3), ("constant", 3)])
def test_the_schedule_asked_for_is_the_one_given(schedule: str, warmup: int) -> None:
    model = CASE.make(lr_schedule=schedule, warmup_steps=warmup, max_steps=12, steps_per_epoch=4, learning_rate=0.5)
    made = model.configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    found = []
    for _ in range(12):
        found.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    after = range(12 - warmup)
    full = [0.25 * (1 + math.cos(math.pi * s / len(after))) if schedule == "cosine" else 0.5 for s in after]
    assert found == pytest.approx([0.5 * (s + 1) / 3 for s in range(warmup)] + full)


def test_residual_branches_start_open() -> None:
    for preset in ("laptop", "paper", "best"):
        model = AnatPaste(preset=preset, num_workers=0)
        norms = [module for module in model.model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(norms) == 20
        assert all((norm.weight == 1).all() for norm in norms)
