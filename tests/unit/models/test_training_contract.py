"""What every detector that trains has to do, step by step, against steps made by hand from its paper."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from anomalib.engine import Engine
from detector_cases import CASES, DetectorCase, Step, ThreeFilms, film, rate_by_hand
from lightning.pytorch import Callback
from torch import Tensor

from anomalib_cxr import models
from anomalib_cxr.models.components.step_order import StepDataset, mix_seed
from anomalib_cxr.models.components.step_training import StepTrainingMixin

STEPS = 4


class Recorded(NamedTuple):
    """One training step as it happened."""

    images: Tensor
    paths: list[str]
    generator_state: Tensor
    training: dict[str, bool]
    network: Any
    loss: float
    gradients: dict[str, Tensor]
    groups: list[dict[str, Any]]
    after: dict[str, Tensor]


class Recorder(Callback):
    """Notes all that a step is made from and what it does; keeps the checkpoint of the first validation."""

    def __init__(self, kept: Path | None = None) -> None:
        self.kept = kept
        self.steps: list[Recorded] = []
        self.now: dict[str, Any] = {}

    def on_fit_start(self, trainer, pl_module) -> None:
        stock = pl_module.training_loss

        def noted(batch, generator):
            self.now = {
                "images": batch.image.detach().clone(),
                "paths": list(batch.image_path),
                "generator_state": generator.get_state(),
                "training": {name: module.training for name, module in pl_module.model.named_modules()},
                "network": copy.deepcopy(pl_module.model),
            }
            return stock(batch, generator)

        pl_module.training_loss = noted

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if self.kept is not None and trainer.current_epoch == 1:
            (checkpoint,) = Path(trainer.default_root_dir).rglob("model.ckpt")
            shutil.copy(checkpoint, self.kept)
            best = checkpoint.with_name("best.ckpt")  # a resumed run looks for it beside
            if best.is_file():
                shutil.copy(best, self.kept.with_name("best.ckpt"))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        trained = [(name, p) for name, p in pl_module.model.named_parameters() if p.requires_grad]
        self.now["gradients"] = {name: p.grad.clone() for name, p in trained if p.grad is not None}
        of = {parameter: name for name, parameter in pl_module.model.named_parameters()}
        self.now["groups"] = [
            {**group, "params": [of[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
        ]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        after = {name: p.detach().clone() for name, p in pl_module.model.named_parameters() if p.requires_grad}
        self.steps.append(Recorded(**self.now, loss=float(outputs["loss"]), after=after))

    def on_fit_end(self, trainer, pl_module) -> None:
        del pl_module.training_loss


class Fitted(NamedTuple):
    case: DetectorCase
    model: Any
    data: ThreeFilms
    steps: list[Recorded]
    half: Path
    root: Path


def fit(case: DetectorCase, root: Path, films: Path, recorder: Recorder, ckpt_path: Path | None = None) -> Any:
    """Fit with the films kept in memory, or where it is resumed, read again for each step."""
    model, data = case.make(), ThreeFilms(films)
    model.films_in_memory = ckpt_path is None
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    Engine(default_root_dir=root, callbacks=[recorder], **quiet).fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, data


@pytest.fixture(scope="module", params=CASES, ids=str)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A recorded fit of four steps, validated after two and four."""
    root = tmp_path_factory.mktemp("contract")
    recorder = Recorder(root / "half.ckpt")
    model, data = fit(request.param, root / "run", root / "films", recorder)
    return Fitted(request.param, model, data, recorder.steps, root / "half.ckpt", root)


def films_of(paths: list[str]) -> Tensor:
    return torch.stack([film(path) for path in paths])


def step_by_hand(case: DetectorCase, step: Recorded, number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the case's own definition, on the network as it was; what rests has no gradient."""
    network, generator = copy.deepcopy(step.network).train(), torch.Generator()
    generator.set_state(step.generator_state)
    loss = case.loss(network, Step(films_of(step.paths), step.paths, generator, number))
    names, parameters = zip(*case.trained(network).items(), strict=True)
    gradients = zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
    return loss.detach(), {name: gradient for name, gradient in gradients if gradient is not None}


def test_every_detector_that_trains_has_a_case() -> None:
    public = [kind for kind in vars(models).values() if isinstance(kind, type) and issubclass(kind, StepTrainingMixin)]
    trained = {kind for kind in public if kind.training_loss is not StepTrainingMixin.training_loss}
    assert trained
    assert trained <= {case.detector for case in CASES}


def test_each_pass_trains_on_each_normal_film_once_as_its_file_has_it(fitted: Fitted) -> None:
    assert len(fitted.steps) == STEPS
    samples = fitted.data.train_data.samples
    assert set(samples["label"]) == {"normal"}
    order = StepDataset(fitted.data.train_data, mix_seed(fitted.model.seed, 1))
    for number, step in enumerate(fitted.steps):
        # A validation begins no order anew.
        assert step.paths == [order[3 * number + position].image_path for position in range(3)]
        assert sorted(step.paths) == sorted(samples["image_path"])
        torch.testing.assert_close(step.images, films_of(step.paths).expand_as(step.images))
    assert len({tuple(step.paths) for step in fitted.steps}) > 1


def test_loss_and_gradient_are_those_made_by_hand(fitted: Fitted) -> None:
    taught = set()
    for number, step in enumerate(fitted.steps):
        loss, gradients = step_by_hand(fitted.case, step, number)
        taught |= gradients.keys()
        assert step.loss == pytest.approx(float(loss), rel=1e-4)
        assert gradients.keys() == step.gradients.keys()
        longest = max(float(gradient.norm()) for gradient in gradients.values())
        assert longest > 1e-4
        for name, gradient in gradients.items():
            difference = float((step.gradients[name] - gradient).norm())
            # Batch norm over six small maps multiplies what float32 rounds.
            assert difference < 1e-2 * float(gradient.norm()) + 1e-5 * longest, name
    assert taught == fitted.case.trained(fitted.model.model).keys()


def test_steps_are_the_optimisers_by_hand(fitted: Fitted) -> None:
    case, memory = fitted.case, {}
    before = case.trained(fitted.steps[0].network)
    for number, step in enumerate(fitted.steps):
        rate = rate_by_hand(case, number, STEPS)
        for name, weight in before.items():
            if name not in step.gradients:
                assert torch.equal(step.after[name], weight), (number, name)
                continue
            old, gradient = weight.detach().double(), step.gradients[name].double()
            new = case.rule(old, gradient, memory.setdefault(name, {}), rate, case.decay_of(name, weight))
            # Weights are float32: a step that is small beside them is known to as many digits as are left.
            rounding = 1e-7 * float(old.norm())
            moved = step.after[name].double() - old
            assert float((moved - (new - old)).norm()) <= 1e-4 * float((new - old).norm()) + rounding, (number, name)
        before = step.after


def test_rate_and_decay_of_each_parameter_at_each_step(fitted: Fitted) -> None:
    case = fitted.case
    for number, step in enumerate(fitted.steps):
        found = {name: (group["lr"], group["weight_decay"]) for group in step.groups for name in group["params"]}
        assert sum(len(group["params"]) for group in step.groups) == len(found)
        rate = rate_by_hand(case, number, STEPS)
        assert found == {
            name: (pytest.approx(rate), case.decay_of(name, weight))
            for name, weight in case.trained(step.network).items()
        }


def test_whole_networks_train_in_training_mode_also_after_a_validation(fitted: Fitted) -> None:
    network, trains = fitted.model.model, fitted.case.trains
    assert all(parameter.requires_grad == trains(name) for name, parameter in network.named_parameters())
    before = fitted.steps[0].network.state_dict()
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items() if not trains(name))
    for step in fitted.steps:
        assert all(training == trains(name) for name, training in step.training.items())
        assert all(gradient.any() for name, gradient in step.gradients.items() if gradient.ndim > 1)


def test_after_a_fit_model_and_datamodule_are_as_they_were(fitted: Fitted) -> None:
    assert fitted.model.training
    assert "train_dataloader" not in vars(fitted.data)
    assert not torch.is_inference(next(fitted.model.parameters()))


def test_bank_is_that_of_these_weights_in_evaluation_mode_film_by_film(fitted: Fitted) -> None:
    if fitted.case.bank is None:
        pytest.skip(f"{fitted.case} scores without a bank")
    network = copy.deepcopy(fitted.model.model).eval()
    films = films_of(list(fitted.data.train_data.samples["image_path"]))
    with torch.no_grad():
        expected = fitted.case.bank(network, films)
    buffers = dict(fitted.model.model.named_buffers())
    for name, bank in expected.items():
        torch.testing.assert_close(buffers[name], bank, rtol=1e-3, atol=1e-3 * float(bank.double().std()))
        # No film could stand in for another.
        if name.endswith("references"):
            gaps = [torch.pdist(place).min() for place in bank.reshape(-1, len(films), bank.shape[-1])]
            assert min(gaps) > 1e-3 * bank.abs().mean()


def stub_step(case: DetectorCase, seed: int, step: int, batch: int, rank: int) -> tuple[int, int, float]:
    """Seed of the generator of a step, seed of torch's own, and its next draw: the step of one process of four."""
    model = case.make(seed=seed)
    progress = SimpleNamespace(total=SimpleNamespace(completed=step))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    model._trainer = SimpleNamespace(
        fit_loop=loop, global_rank=rank, world_size=4, accumulate_grad_batches=1, datamodule=None
    )
    model._stage = 0
    model.log = lambda *args, **kwargs: None
    seen = []

    def noted(batch, generator):
        seen.extend([generator.initial_seed(), torch.initial_seed(), torch.rand(()).item()])
        return torch.zeros((), requires_grad=True)

    model.training_loss = noted
    torch.manual_seed(0)
    torch.rand(seed + step + batch + rank)  # whatever went before
    model.on_train_batch_start(SimpleNamespace(), batch)
    model.training_step(SimpleNamespace())
    return tuple(seen)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_randomness_of_a_step_is_a_function_of_seed_step_and_rank(case: DetectorCase) -> None:
    places = [(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in (0, 1, 2)]
    drawn = [stub_step(case, seed, step, step, rank) for seed, step, rank in places]
    for part in zip(*drawn, strict=True):
        assert len(set(part)) == len(places)
    torch.rand(17)
    assert stub_step(case, *places[-1][:2], places[-1][1], places[-1][2]) == drawn[-1]


def test_a_fit_draws_what_its_seed_and_steps_say(fitted: Fitted) -> None:
    for number, step in enumerate(fitted.steps):
        seed, _, _ = stub_step(fitted.case, 3, number, number % 2, 0)
        assert torch.equal(step.generator_state, torch.Generator().manual_seed(seed).get_state())


def test_a_resumed_fit_equals_an_unbroken_one(fitted: Fitted) -> None:
    assert torch.load(fitted.half, weights_only=True)["global_step"] == STEPS // 2
    recorder = Recorder()
    resumed, _ = fit(fitted.case, fitted.root / "resumed", fitted.root / "films", recorder, fitted.half)
    assert [step.paths for step in recorder.steps] == [step.paths for step in fitted.steps[STEPS // 2 :]]
    for ours, theirs in zip(recorder.steps, fitted.steps[STEPS // 2 :], strict=True):
        assert ours.loss == theirs.loss
        assert torch.equal(ours.generator_state, theirs.generator_state)
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value) or not value.numel(), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_are_a_function_of_the_seed(case: DetectorCase) -> None:
    torch.manual_seed(0)
    first = case.make().model.state_dict()
    torch.manual_seed(1)
    second, other = case.make().model.state_dict(), case.make(seed=4).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_loss_that_is_no_longer_finite_ends_the_run_by_step(case: DetectorCase, tmp_path: Path) -> None:
    model = case.make()
    for weight in case.trained(model.model).values():
        torch.nn.init.constant_(weight, float("nan"))
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    with pytest.raises(RuntimeError, match=r"The loss( term \w+)? is nan at step 0: lower learning_rate"):
        Engine(default_root_dir=tmp_path, **quiet).fit(model, datamodule=ThreeFilms(tmp_path / "films"))
