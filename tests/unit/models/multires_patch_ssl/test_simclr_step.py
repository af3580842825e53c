"""What MultiResPatchSSL's training step is made of: patches, owners, views, projection, loss; against SimCLR's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch
from detector_cases import CASES, Step, ThreeFilms, drawn_patches, film, nt_xent, patches_of, simclr_loss
from torch import Tensor, nn

from anomalib_cxr.models import MultiResPatchSSL
from anomalib_cxr.models.components.patch_encoder import PatchEncoder
from anomalib_cxr.models.multires_patch_ssl.projection_head import projection_head
from anomalib_cxr.models.multires_patch_ssl.views import SimCLRViews

(CASE,) = (case for case in CASES if case.detector is MultiResPatchSSL)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> ImageBatch:
    """The three normal films."""
    paths = list(ThreeFilms(tmp_path_factory.mktemp("films")).make_samples()["image_path"][:3])
    return ImageBatch(image=torch.stack([film(path) for path in paths]).expand(-1, 3, -1, -1), image_path=paths)


class Watched:
    """Takes notes of a step: patches, views, and what the loss gets, for each size."""

    def __init__(self, model: Any, batch: ImageBatch, seed: int = 0) -> None:
        self.patches: list[Tensor] = []
        self.views: list[tuple[Tensor, Tensor]] = []
        self.embedded: list[Tensor] = []
        self.contrasted: list[tuple[Tensor, Tensor, Tensor | None]] = []
        views, embed, loss = model.views, model.model.embed, model.loss

        def noted_views(patches: Tensor, generator: torch.Generator):
            self.patches.append(patches)
            self.views.append(views(patches, generator))
            return self.views[-1]

        def noted_embed(patches: Tensor, size: int):
            self.embedded.append(patches)
            return embed(patches, size)

        def noted_loss(first: Tensor, second: Tensor, image_index: Tensor | None = None):
            self.contrasted.append((first, second, image_index))
            return loss(first, second, image_index=image_index)

        calls = {"views": noted_views, "loss": noted_loss}
        kept = {name: model._modules.pop(name) for name in calls}
        vars(model).update(calls)
        model.model.embed = noted_embed
        self.losses = model.training_loss(batch, torch.Generator().manual_seed(seed))
        del model.model.embed
        for name, module in kept.items():
            del vars(model)[name]
            model._modules[name] = module


@pytest.mark.parametrize("overlapping", [True, False], ids=["all negatives", "none of the same film"])
def test_loss_is_the_one_by_hand_under_either_rule_for_patches_of_one_film(
    batch: ImageBatch, overlapping: bool
) -> None:
    model = CASE.make(same_image_negatives=overlapping)
    films = batch.image[:, :1]
    losses = model.training_loss(batch, torch.Generator().manual_seed(5))
    step = Step(films, batch.image_path, torch.Generator().manual_seed(5))
    other = Step(films, batch.image_path, torch.Generator().manual_seed(5))
    expected = simclr_loss(model.model, step, overlapping=overlapping)
    assert float(sum(losses.values())) == pytest.approx(float(expected), rel=1e-4)
    assert abs(float(simclr_loss(model.model, other, overlapping=not overlapping)) - float(expected)) > 1e-2
    assert list(losses) == ["16", "32"]


def test_patches_of_one_film_are_negatives_unless_switched_off(batch: ImageBatch) -> None:
    assert CASE.make().same_image_negatives
    for model, given in ((CASE.make(), False), (CASE.make(same_image_negatives=False), True)):
        assert [owners is not None for *_, owners in Watched(model, batch).contrasted] == [given, given]


def test_two_different_views_of_the_same_patches_are_contrasted(batch: ImageBatch) -> None:
    model = CASE.make()
    step = Watched(model, batch)
    for size, (first, second) in enumerate(step.views):
        assert len(first) == len(second) == 6
        assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(first, second, strict=True))
        torch.testing.assert_close(step.embedded[size], torch.cat([first, second]))
        projected = model.model.embed(torch.cat([first, second]), size).chunk(2)
        for found, expected in zip(step.contrasted[size][:2], projected, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        loss = nt_xent(*projected, temperature=0.1).detach()
        assert float(step.losses[str(model.model.patch_sizes[size])].detach()) == pytest.approx(float(loss), rel=1e-3)


def test_patches_are_drawn_and_not_the_first(batch: ImageBatch) -> None:
    model, films = CASE.make(), batch.image[:, :1]
    for size, side in enumerate(model.model.patch_sizes):
        whole = [patch for _, patch in patches_of(films, side)]
        drawn: list[list[int]] = []
        for seed in range(8):
            patches, owners = model._sample_patches(films, size, torch.Generator().manual_seed(seed))
            assert len(patches) == 6
            places = [next(i for i, one in enumerate(whole) if torch.equal(one, patch)) for patch in patches]
            assert len(set(places)) == 6  # without repeats
            assert owners.tolist() == [place // (len(whole) // 3) for place in places]
            expected, numbers = drawn_patches(films, side, 6, torch.Generator().manual_seed(seed))
            assert torch.equal(patches, expected)
            assert owners.tolist() == numbers
            drawn.append(places)
        assert len({tuple(places) for places in drawn}) == 8
        assert max(map(max, drawn)) > 0.8 * len(whole)
        assert {place // (len(whole) // 3) for places in drawn for place in places} == {0, 1, 2}


@pytest.mark.parametrize(("wanted", "sides"), [(256, {8: 192, 16: 48}), (20, {8: 20, 16: 20, 32: 12})])
def test_every_size_trains_on_as_many_patches_as_asked_for_or_all(wanted: int, sides: dict[int, int]) -> None:
    model = CASE.make(patch_sizes=tuple(sides), patches_per_step=wanted)
    films = torch.rand(3, 1, 64, 64)
    for size, number in enumerate(sides.values()):
        patches, owners = model._sample_patches(films, size, torch.Generator())
        assert len(patches) == len(owners) == number


def test_owners_are_unique_over_processes(batch: ImageBatch) -> None:
    model, films = CASE.make(patches_per_step=48), batch.image[:, :1]
    found = []
    for rank in range(4):
        model._trainer = SimpleNamespace(global_rank=rank, world_size=4)
        found.append(set(model._sample_patches(films, 0, torch.Generator())[1].tolist()))
    assert [len(owners) for owners in found] == [3] * 4
    assert len(set.union(*found)) == 12


@pytest.mark.parametrize("steps", [1, 9, 10, 40, 105])
def test_the_rate_rises_over_the_first_tenth(steps: int) -> None:
    arguments = {name: value for name, value in CASE.arguments.items() if name != "warmup_steps"}
    model = MultiResPatchSSL(**arguments | {"max_steps": steps, "steps_per_epoch": None})
    tenth = steps // 10
    assert model.warmup_steps == tenth
    rates = [model.rate_at(step) for step in range(steps)]
    assert rates[:tenth] == pytest.approx([(step + 1) / tenth for step in range(tenth)])
    assert rates[tenth] == 1.0
    assert all(later < earlier for earlier, later in zip(rates[tenth:], rates[tenth + 1 :], strict=False))


def test_projection_head_is_linear_relu_linear() -> None:
    torch.manual_seed(0)
    head, features = projection_head(12, out=5), torch.randn(9, 12)
    linear = [module for module in head if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(12, 12), (12, 5)]
    hidden = (features @ linear[0].weight.T + linear[0].bias).clamp(min=0)
    assert (hidden == 0).any()
    torch.testing.assert_close(head(features), hidden @ linear[1].weight.T + linear[1].bias)
    middle = head((features[:1] + features[1:2]) / 2)
    assert (middle - (head(features[:1]) + head(features[1:2])) / 2).abs().max() > 1e-2  # and so not linear


def test_projections_are_of_simclrs_length_and_thrown_away_afterwards(batch: ImageBatch) -> None:
    model = CASE.make().model.eval()
    with torch.no_grad():
        assert model.embed(torch.rand(2, 1, 16, 16), 0).shape == (2, 128)
        features = model.features(batch.image)
        for head in model.heads:
            for parameter in head.parameters():
                parameter.zero_()
        for one, other in zip(model.features(batch.image), features, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("backbone", ["resnet10t", "resnet18", "resnet50"])
def test_residual_branches_of_untrained_encoders_start_open(backbone: str) -> None:
    norms = [m for m in PatchEncoder(backbone).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all((norm.weight == 1).all() for norm in norms)


def test_encoders_see_grey_between_minus_one_and_one(batch: ImageBatch) -> None:
    model = CASE.make()
    for size in (0, 1):
        encoder = model.model.encoder(size)
        seen: list[Tensor] = []
        hook = encoder.model.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.append(inputs[0]))
        patches, _ = model._sample_patches(batch.image[:, :1], size, torch.Generator())
        encoder(patches)
        hook.remove()
        assert seen[0].shape == (6, 1, 16, 16)
        block = patches.shape[-1] // 16
        means = patches.unflatten(3, (16, block)).unflatten(2, (16, block)).mean(dim=(3, 5))
        torch.testing.assert_close(seen[0], 2 * means - 1)
        assert -1 <= seen[0].min() < -0.2
        assert 0.2 < seen[0].max() <= 1


def test_views_are_the_papers() -> None:
    """Kim, Moon and Lee, method section: "random crop (50 %) and rotation (-5° to +5°)"."""
    for views in (SimCLRViews(), MultiResPatchSSL(**CASE.arguments).views):
        assert views.crop_area == (0.5, 0.5)
        assert views.degrees == 5


def test_temperature_is_that_of_the_loss() -> None:
    assert CASE.make().loss.temperature == 0.1  # SimCLR, Table 5
    assert CASE.make(temperature=0.7).loss.temperature == 0.7


def test_bank_keeps_each_film_under_its_number(tmp_path: Path) -> None:
    data = ThreeFilms(tmp_path)
    paths = data.make_samples()["image_path"][:3]
    model = CASE.make().model.eval()
    with torch.no_grad():
        for order in ([0, 1, 2], [2, 0, 1]):
            films = torch.stack([film(paths[number]) for number in order])
            model.fit(model.features(films))
            for found in model.nearest_references(films):
                assert found.distance.abs().max() < 1e-4
                assert found.image.flatten(1).unique(dim=1).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_size_rests_when_its_epochs_are_over(
    batch: ImageBatch, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """The paper trains each size for so many epochs of its own patches, and large patches are few."""
    model = CASE.make(epochs=1, max_steps=None, warmup_steps=None)
    model._steps = [8, 3]
    monkeypatch.setattr(MultiResPatchSSL, "trainer", SimpleNamespace(world_size=processes))
    for step, trained in ((0, ["16", "32"]), (2, ["16", "32"]), (3, ["16"]), (7, ["16"])):
        monkeypatch.setattr(MultiResPatchSSL, "steps_trained", step)
        losses = model.training_loss(batch, torch.Generator().manual_seed(0))
        assert [side for side, loss in losses.items() if float(loss.detach()) != 0] == trained
        model.zero_grad()
        sum(losses.values()).backward()
        for module, side in zip(model._trained_modules(), ("16", "32"), strict=True):
            gradients = [weight.grad for weight in module.parameters()]
            assert any(gradient is not None and bool(gradient.any()) for gradient in gradients) == (side in trained)
            if side not in trained:  # DDP waits for the gradient of every parameter
                assert [gradient is not None for gradient in gradients] == [processes > 1] * len(gradients)
