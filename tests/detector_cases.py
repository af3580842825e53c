"""Every detector that trains, so small that it does so in a second, with its paper's step written out by hand.

A new detector adds one entry to :data:`CASES`, and has to pass ``unit/models/test_training_contract.py``. What stands
here shares no code with the training glue: images are read from their files, layers are applied one by one, losses are
loops over their definitions, optimisers are formulas in float64.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anomalib.models import AnomalibModule
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from toy_detector import ToyDetector

from anomalib_cxr.anatomy import segment_lungs
from anomalib_cxr.augmentations import AnatPasteAugmentation, PatchInterpolation, jitter_intensity
from anomalib_cxr.augmentations.position import shift_and_scale
from anomalib_cxr.data import RadiographDataModule
from anomalib_cxr.models import (
    SQUID,
    AlphaGAN,
    AnatPaste,
    AutoEncoder,
    DeepSVDD,
    FAnoGAN,
    FeatureDistillation,
    MultiResPatchSSL,
    PatchSVDD,
    PoissonInterpolation,
)
from anomalib_cxr.models.multires_patch_ssl.views import SimCLRViews
from anomalib_cxr.models.patch_svdd.tasks import draw_neighbours, draw_shifted

SIDE = 64


class ThreeFilms(RadiographDataModule):
    """Three normal films to train on, whose lungs lie at different places; one of each label to validate and test."""

    def __init__(self, root: Path, train_batch_size: int = 3) -> None:
        super().__init__(root=root, train_batch_size=train_batch_size, eval_batch_size=2, num_workers=0)

    def make_samples(self) -> pd.DataFrame:
        self.root.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        rows = []
        parts = [("train", "normal")] * 3 + [(split, label) for split in ("val", "test") for label in LABELS]
        for number, (split, label) in enumerate(parts):
            rng = np.random.default_rng(number)
            height, down = 0.22 + 0.03 * number % 0.1, 0.45 + 0.04 * (number % 3)
            lungs = sum(((x - cx) / 0.14) ** 2 + ((y - down) / height) ** 2 < 1 for cx in (0.28, 0.72))
            film = 0.75 - 0.5 * (lungs > 0) + rng.normal(0, 0.03, x.shape)
            if label == "abnormal":
                film += 0.4 * np.exp(-((x - 0.3) ** 2 + (y - down) ** 2) / 0.004)
            path = self.root / f"{number}_{split}_{label}.png"
            Image.fromarray((film.clip(0, 1) * 255).round().astype(np.uint8)).save(path)
            row = {"image_path": str(path), "label": label, "split": split, "patient_id": f"p{number}"}
            rows.append(row | {"findings": "", "mask_path": ""})
        return pd.DataFrame(rows)


LABELS = ("normal", "abnormal")


def film(path: str | Path) -> Tensor:
    """One film as its file has it, (1, H, W), grey in [0, 1]."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture.convert("L"), np.float32) / 255)[None]


class Step(NamedTuple):
    """What a training step is made from: (B, 1, H, W) films in [0, 1], their files, its generator, and its number."""

    films: Tensor
    paths: list[str]
    generator: torch.Generator
    number: int = 0


Loss = Callable[[Any, Step], Tensor]
Rule = Callable[[Tensor, Tensor, dict[str, Tensor], float, float], Tensor]
Bank = Callable[[Any, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class DetectorCase:
    """A detector at its smallest, and what a step of it is by definition.

    Attributes:
        detector: Its class.
        arguments: Of its constructor, for four steps of 64² films, validated every second.
        loss: Loss of a step by the network as it was before (``model.model``). A parameter that it does not depend on
            rests in that step.
        rule: New weight from weight, gradient, the optimiser's memory, rate and decay; float64.
        rate: Learning rate at its highest.
        decay: Weight decay of a parameter, by its value.
        warmup: Steps of linear warm-up.
        constant: Whether the rate stays from there on, or falls to 0 as half a cosine.
        bank: Where scores are made against a bank: what the network in evaluation mode makes of the training films
            in the order of the data set, by the names of ``model.model``'s buffers.
        frozen: The module of ``model.model`` that stays as it is, by its name; empty where all is trained.
        undecayed: The module of ``model.model`` without weight decay, by its name.
        schedule: Factor on the rate by step and length of the training; None is warm-up, then a cosine to 0.
    """

    detector: type[AnomalibModule]
    arguments: Mapping[str, Any]
    loss: Loss
    rule: Rule
    rate: float
    decay: Callable[[Tensor], float]
    warmup: int = 0
    constant: bool = False
    bank: Bank | None = None
    frozen: str = ""
    undecayed: str = ""
    schedule: Callable[[int, int], float] | None = None

    def trains(self, name: str) -> bool:
        """Whether a module, parameter or buffer of ``model.model`` is trained, by its name."""
        return not self.frozen or name.split(".")[0] != self.frozen

    def trained(self, network: Any) -> dict[str, Tensor]:
        """The parameters of ``model.model`` that are trained, by name."""
        return {name: weight for name, weight in network.named_parameters() if self.trains(name)}

    def decay_of(self, name: str, weight: Tensor) -> float:
        """Weight decay of a parameter of ``model.model``."""
        return 0.0 if name.split(".")[0] == self.undecayed else self.decay(weight)

    def make(self, **arguments: Any) -> Any:
        """The detector, with other arguments where given."""
        return self.detector(**(dict(self.arguments) | arguments))

    def __str__(self) -> str:
        return self.detector.__name__


# ------------------------------------------------------------------------------------------------- optimisers by hand


def momentum(weight: Tensor, gradient: Tensor, memory: dict[str, Tensor], rate: float, decay: float) -> Tensor:
    """Gradient descent with the classical momentum of 0.9."""
    memory["velocity"] = 0.9 * memory.get("velocity", torch.zeros_like(weight)) + gradient + decay * weight
    return weight - rate * memory["velocity"]


def lars(weight: Tensor, gradient: Tensor, memory: dict[str, Tensor], rate: float, decay: float) -> Tensor:
    """Algorithm 1 of You et al. 2017; vectors have neither decay nor trust ratio, as in SimCLR."""
    ratio = 0.001 * weight.norm() / (gradient + decay * weight).norm() if weight.ndim > 1 else 1.0
    velocity = 0.9 * memory.get("velocity", torch.zeros_like(weight)) + ratio * (gradient + decay * weight)
    memory["velocity"] = velocity
    return weight - rate * velocity


def adamw(
    weight: Tensor,
    gradient: Tensor,
    memory: dict[str, Tensor],
    rate: float,
    decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> Tensor:
    """Loshchilov and Hutter 2019, Algorithm 2, with Adam's own constants where no others are given."""
    first, second = betas
    memory["steps"] = memory.get("steps", torch.zeros(())) + 1
    memory["mean"] = first * memory.get("mean", torch.zeros_like(weight)) + (1 - first) * gradient
    memory["square"] = second * memory.get("square", torch.zeros_like(weight)) + (1 - second) * gradient**2
    mean = memory["mean"] / (1 - first ** memory["steps"])
    square = memory["square"] / (1 - second ** memory["steps"])
    return weight - rate * (mean / (square.sqrt() + epsilon) + decay * weight)


def adam(weight: Tensor, gradient: Tensor, memory: dict[str, Tensor], rate: float, decay: float) -> Tensor:
    """Kingma and Ba 2015, Algorithm 1, the decay as a part of the gradient."""
    return adamw(weight, gradient + decay * weight, memory, rate, 0.0)


# -------------------------------------------------------------------------------------------------- AnatPaste by hand


def anat_paste_pairs(step: Step) -> tuple[Tensor, Tensor]:
    """Normal films with jittered intensities, and the same films with something pasted into their own lungs."""
    normal = jitter_intensity(step.films, 0.1, step.generator)
    lungs = torch.stack([torch.from_numpy(segment_lungs(film(path)[0].numpy()))[None] for path in step.paths])
    (pasted,) = AnatPasteAugmentation()(normal, lungs, step.generator)
    return normal, pasted.image


def anat_paste_loss(network: Any, step: Step) -> Tensor:
    """Cross-entropy of "normal or pasted": ResNet on [-1, 1], then linear layer, batch norm, ReLU for each of two."""
    normal, pasted = anat_paste_pairs(step)
    hidden = network.backbone.forward_features(2 * torch.cat([normal, pasted]) - 1).mean(dim=(2, 3))
    weights = dict(network.named_parameters())
    for layer in (0, 3):
        hidden = hidden @ weights[f"head.{layer}.weight"].T
        centred = hidden - hidden.mean(dim=0)
        hidden = centred / (centred.square().mean(dim=0) + 1e-5).sqrt()
        hidden = (hidden * weights[f"head.{layer + 1}.weight"] + weights[f"head.{layer + 1}.bias"]).clamp(min=0)
    logits = hidden @ weights["classifier.weight"].T + weights["classifier.bias"]
    labels = [0] * len(normal) + [1] * len(pasted)
    return torch.stack([row.exp().sum().log() - row[label] for row, label in zip(logits, labels, strict=True)]).mean()


def anat_paste_bank(network: Any, films: Tensor) -> dict[str, Tensor]:
    """Unit embeddings, film by film."""
    rows = [network.backbone.forward_features(2 * one[None] - 1).mean(dim=(2, 3))[0] for one in films]
    return {"density.references": torch.stack([row / row.norm() for row in rows])}


# -------------------------------------------------------------------------------------------- MultiResPatchSSL by hand


def patches_of(films: Tensor, side: int) -> Iterator[tuple[int, Tensor]]:
    """Patches that tile the films, film by film and row by row, with the number of their film."""
    for number, one in enumerate(films):
        for top in range(0, one.shape[-2], side):
            for left in range(0, one.shape[-1], side):
                yield number, one[:, top : top + side, left : left + side]


def encode(network: Any, size: int, patches: Tensor) -> Tensor:
    """Features of patches, shrunk to 16 pixels by the mean of each block, on [-1, 1]."""
    block = patches.shape[-1] // 16
    return network.encoders[size].model(2 * F.avg_pool2d(patches, block) - 1)


def drawn_patches(films: Tensor, side: int, count: int, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """A random choice without repeats, and the film of each."""
    owners, patches = zip(*patches_of(films, side), strict=True)
    chosen = torch.randperm(len(patches), generator=generator)[:count].tolist()
    return torch.stack([patches[i] for i in chosen]), [owners[i] for i in chosen]


def nt_xent(first: Tensor, second: Tensor, temperature: float, owners: list[int] | None = None) -> Tensor:
    """Equation 1 of SimCLR, anchor by anchor; patches of one film are no negatives where owners are given."""
    views, n = torch.cat([first, second]), len(first)
    views = views / views.norm(dim=1, keepdim=True)
    losses = []
    for anchor in range(2 * n):
        positive = (anchor + n) % (2 * n)
        others = [k for k in range(2 * n) if k != anchor]
        if owners is not None:
            others = [k for k in others if k == positive or owners[k % n] != owners[anchor % n]]
        similar = {k: (views[anchor] @ views[k] / temperature).exp() for k in others}
        losses.append(-(similar[positive] / sum(similar.values())).log())
    return torch.stack(losses).mean()


def simclr_loss(network: Any, step: Step, overlapping: bool = True, patches_per_step: int = 6) -> Tensor:
    """Sum over sizes of NT-Xent between two views of each drawn patch, by a projection head of two layers."""
    losses = []
    views = SimCLRViews(crop_area=0.5, degrees=5)
    for size, side in enumerate(network.patch_sizes):
        patches, owners = drawn_patches(step.films, side, patches_per_step, step.generator)
        both = torch.cat([views.view(patches, step.generator), views.view(patches, step.generator)])
        first, _, second = network.heads[size]
        hidden = (encode(network, size, both) @ first.weight.T + first.bias).clamp(min=0)
        projected = hidden @ second.weight.T + second.bias
        losses.append(nt_xent(*projected.chunk(2), temperature=0.1, owners=None if overlapping else owners))
    return torch.stack(losses).sum()


def multires_bank(network: Any, films: Tensor) -> dict[str, Tensor]:
    """Feature of each patch at its row, column and film."""
    found = {}
    for size, side in enumerate(network.patch_sizes):
        cells = SIDE // side
        rows = torch.cat([encode(network, size, patch[None]) for _, patch in patches_of(films, side)])
        found[f"banks.{size}.search.references"] = rows.unflatten(0, (len(films), cells, cells)).permute(1, 2, 0, 3)
        found[f"banks.{size}.search.image_index"] = torch.arange(len(films)).expand(cells, cells, -1)
    return found


# ------------------------------------------------------------------------------------------------ AutoEncoder by hand


def auto_encoder_loss(network: Any, step: Step) -> Tensor:
    """Mean squared error on [−1, 1] of four convolutions, a code and the way back, all normalised over the batch."""
    films = 2 * step.films - 1
    weights = dict(network.network.named_parameters())

    def normed(hidden: Tensor, name: str) -> Tensor:
        axes = [0, 2, 3][: hidden.ndim - 1]
        shape = [1, -1, 1, 1][: hidden.ndim]
        centred = hidden - hidden.mean(dim=axes, keepdim=True)
        hidden = centred / (centred.square().mean(dim=axes, keepdim=True) + 1e-5).sqrt()
        return (hidden * weights[f"{name}.weight"].view(shape) + weights[f"{name}.bias"].view(shape)).clamp(min=0)

    def linear(hidden: Tensor, name: str) -> Tensor:
        return hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    hidden = films
    for layer in (0, 3, 6, 9):
        hidden = F.conv2d(hidden, weights[f"encoder.{layer}.weight"], stride=2, padding=1)
        hidden = normed(hidden, f"encoder.{layer + 1}")
    shape = hidden.shape
    hidden = normed(linear(hidden.flatten(1), "bottleneck.squeeze.1"), "bottleneck.squeeze.2")
    code = linear(hidden, "bottleneck.squeeze.4")
    hidden = normed(linear(code, "bottleneck.expand.0"), "bottleneck.expand.1")
    hidden = linear(hidden, "bottleneck.expand.3").reshape(shape)
    for layer in (0, 3, 6, 9):
        hidden = F.conv_transpose2d(hidden, weights[f"decoder.{layer}.weight"], stride=2, padding=1)
        if layer < 9:
            hidden = normed(hidden, f"decoder.{layer + 1}")
    return (films - hidden).square().mean()


# ---------------------------------------------------------------------------------------- PoissonInterpolation by hand


def batch_norm(
    maps: Tensor, weights: Mapping[str, Tensor], name: str, kept: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Ioffe and Szegedy 2015, Algorithm 1, over films and places, or by kept statistics."""
    if kept is None:
        centred = maps - maps.mean(dim=(0, 2, 3), keepdim=True)
        unit = centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()
    else:
        mean, variance = (kept[f"{name}.running_{what}"][:, None, None] for what in ("mean", "var"))
        unit = (maps - mean) / (variance + 1e-5).sqrt()
    return unit * weights[f"{name}.weight"].view(-1, 1, 1) + weights[f"{name}.bias"].view(-1, 1, 1)


def interpolation_loss(network: Any, step: Step) -> Tensor:
    """Cross-entropy of the share at each pixel; the decoder adds levels up from the coarsest and reads the finest."""
    films = torch.stack([(one - one.mean()) / one.std(correction=0) for one in step.films])
    lungs = torch.stack([torch.from_numpy(segment_lungs(film(path)[0].numpy()))[None] for path in step.paths])
    (pasted,) = PatchInterpolation(shift=0.4, segmentation=True).paste(films, lungs, step.generator)
    weights = {name.removeprefix("network."): weight for name, weight in network.named_parameters()}
    levels = network.network.encoder.model.forward_intermediates(pasted.image, intermediates_only=True)[1:4]
    mixed = [torch.einsum("oc,bchw->bohw", weights[f"lateral.{i}.weight"][:, :, 0, 0], x) for i, x in enumerate(levels)]
    total = mixed[2]
    for level in (1, 0):
        total = mixed[level] + F.interpolate(total, scale_factor=2, mode="bilinear")
    hidden = batch_norm(total, weights, "read.0").clamp(min=0)
    hidden = batch_norm(F.conv2d(hidden, weights["read.2.weight"], padding=1), weights, "read.3").clamp(min=0)
    logits = torch.einsum("oc,bchw->bohw", weights["read.5.weight"][:, :, 0, 0], hidden) + weights["read.5.bias"]
    shares = 1 / (1 + (-F.interpolate(logits, SIDE, mode="bilinear")).exp())
    return -(pasted.mask * shares.log() + (1 - pasted.mask) * (1 - shares).log()).mean()


# ------------------------------------------------------------------------------------------------------ SQUID by hand


def squid_loss(network: Any, step: Step) -> Tensor:
    """The discriminator's loss in each step, that of encoder, student and teacher in each second one.

    Convolutions, memories and blocks are tested by themselves and called here. What they are joined to, what learns
    from which term and by which weight is written out.
    """
    films = shift_and_scale(step.films, 0.05, 0.05, step.generator)
    half = SIDE // 2
    corners = [(top, left) for top in (0, half) for left in (0, half)]
    windows = torch.stack([one[:, top : top + half, left : left + half] for one in films for top, left in corners])
    maps = [network.encoder.start(windows)]
    for halving in network.encoder.down:
        maps.append(halving(maps[-1]))
    inpainted, _ = network.inpainting(maps[4], step.generator)

    def decoded(decoder: Any, bottom: Tensor, skipped: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        hidden, levels = bottom, []
        for number in range(4):
            hidden = F.interpolate(hidden, scale_factor=2, mode="bilinear")
            if number < 2:
                hidden = torch.cat([hidden, skipped[number]], dim=1)
            hidden = decoder.steps[number](hidden)
            if decoder is network.student and number < 2:
                hidden = decoder.memories[number](hidden, step.generator)
            levels.append(hidden)
            if number == 1:
                rows = [torch.cat([hidden[i::4], hidden[i + 1 :: 4]], dim=3) for i in (0, 2)]
                hidden = torch.cat(rows, dim=2)
        weight, bias = decoder.last.weight[:, :, 0, 0], decoder.last.bias
        return 1 / (1 + (-torch.einsum("oc,bchw->bohw", weight, hidden) - bias).exp()), levels

    made, student = decoded(network.student, inpainted, [maps[3], maps[2]])
    copied, teacher = decoded(network.teacher, maps[4].detach(), [maps[3].detach(), maps[2].detach()])

    def looks(pictures: Tensor, learns: bool) -> Tensor:
        hidden = pictures
        for layer in network.discriminator.layers:
            given = [one if learns else one.detach() for one in layer.parameters()]
            if isinstance(layer, torch.nn.Conv2d):
                hidden = F.conv2d(hidden, *given, stride=2, padding=2)
            elif given:
                centred = hidden - hidden.mean(dim=(0, 2, 3), keepdim=True)
                hidden = centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()
                hidden = hidden * given[0][:, None, None] + given[1][:, None, None]
            else:
                hidden = torch.maximum(hidden, 0.2 * hidden)
        weight, bias = (one if learns else one.detach() for one in network.discriminator.last.parameters())
        return 1 / (1 + (-hidden.flatten(1) @ weight.T - bias).exp())

    loss = -0.005 * (looks(films, True).log().mean() + (1 - looks(made.detach(), True)).log().mean())
    if step.number % 2:
        apart = [(one - other).square().mean() for one, other in zip(student, teacher, strict=True)]
        loss = loss + 10 * (made - films).square().mean() + 0.01 * (copied - films).square().mean()
        loss = loss + 0.001 * sum(apart) - 0.005 * looks(made, False).log().mean()
    return loss


def squid_adam(weight: Tensor, gradient: Tensor, memory: dict[str, Tensor], rate: float, decay: float) -> Tensor:
    """Adam with a first moment of 0.5; its ε is 1e-7 where there is decay, and Adam's own elsewhere."""
    epsilon = 1e-7 if decay else 1e-8
    return adamw(weight, gradient + decay * weight, memory, rate, 0.0, betas=(0.5, 0.999), epsilon=epsilon)


# --------------------------------------------------------------------------------------------------------- toy by hand


def toy_loss(network: Any, step: Step) -> Tensor:
    """Mean squared error of a linear autoencoder."""
    flat = step.films.flatten(1)
    code = flat @ network.encoder.weight.T + network.encoder.bias
    return (code @ network.decoder.weight.T + network.decoder.bias - flat).square().mean()


# ----------------------------------------------------------------------------------------- FeatureDistillation by hand


def distillation_bank(network: Any, films: Tensor) -> dict[str, Tensor]:
    """Mean and scale of one minus the cosine at each place of a level, the finest left out, film by film."""
    found: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    for one in 2 * films[:, None] - 1:
        levels = network.teacher.model.forward_intermediates(one, indices=[2, 3, 4], intermediates_only=True)
        hidden, learnt = one, []
        for stage in network.student.stages:
            for layer in stage:
                hidden = layer(hidden)
            learnt.append(hidden)
        for level, (teacher, student) in enumerate(zip(levels, learnt[-3:], strict=True)):
            products = (teacher * student).sum(dim=1)
            found[level].append(1 - products / teacher.norm(dim=1) / student.norm(dim=1))
    bank = {}
    for level, maps in found.items():
        deviation = torch.stack(maps).std(dim=0)
        bank[f"normal_maps.{level}.mean"] = torch.stack(maps).mean(dim=0)
        bank[f"normal_maps.{level}.scale"] = deviation + 0.1 * deviation.mean()
    return bank


def distillation_loss(network: Any, step: Step) -> Tensor:
    """Direction and values of whole maps: a narrow VGG-16 after a teacher's levels, both of films in [-1, 1]."""
    hidden = 2 * step.films - 1
    levels = network.teacher.model.forward_intermediates(hidden, indices=[1, 2, 3, 4], intermediates_only=True)
    weights = dict(network.student.named_parameters())
    losses = []
    for stage, depth in enumerate((2, 2, 3, 3, 3)):
        for layer in range(depth - 1):
            hidden = F.conv2d(hidden, weights[f"stages.{stage}.{3 * layer}.weight"], padding=1)
            centred = hidden - hidden.mean(dim=(0, 2, 3), keepdim=True)
            hidden = centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()
            scale, shift = (weights[f"stages.{stage}.{3 * layer + 1}.{name}"] for name in ("weight", "bias"))
            hidden = (hidden * scale[:, None, None] + shift[:, None, None]).clamp(min=0)
        hidden = F.avg_pool2d(F.conv2d(hidden, weights[f"stages.{stage}.{3 * (depth - 1)}.weight"], padding=1), 2)
        for teacher, student in zip(levels[stage - 1], hidden, strict=True) if stage else ():
            cosine = (teacher * student).sum() / teacher.norm() / student.norm()
            losses.append(1 - cosine + 0.01 * (teacher - student).square().mean())
    return torch.stack(losses).sum() / len(step.films)


# --------------------------------------------------------------------------------------------------- AlphaGAN by hand


def coded(images: Tensor, weights: Mapping[str, Tensor], coder: str = "encoder") -> Tensor:
    """Codes of images: four convolutions, normalised over the batch, and a linear layer."""
    for layer in (0, 3, 6, 9):
        images = F.conv2d(images, weights[f"{coder}.0.{layer}.weight"], stride=2, padding=1)
        images = batch_norm(images, weights, f"{coder}.0.{layer + 1}").clamp(min=0)
    return images.flatten(1) @ weights[f"{coder}.2.weight"].T + weights[f"{coder}.2.bias"]


def tanh(values: Tensor) -> Tensor:
    return 1 - 2 / (1 + (2 * values).exp())


def generated(
    codes: Tensor, weights: Mapping[str, Tensor], side: int = SIDE, kept: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Images of codes: a linear layer and four transposed convolutions, normalised; tanh."""
    hidden = (codes @ weights["generator.0.weight"].T).reshape(len(codes), -1, side // 16, side // 16)
    hidden = batch_norm(hidden, weights, "generator.2", kept).clamp(min=0)
    for layer in (0, 3, 6, 9):
        hidden = F.conv_transpose2d(hidden, weights[f"generator.4.{layer}.weight"], stride=2, padding=1)
        if layer < 9:
            hidden = batch_norm(hidden, weights, f"generator.4.{layer + 1}", kept).clamp(min=0)
    return tanh(hidden)


def seen(images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """What a critic makes of images, flat: four convolutions, all but the first normalised image by image, leaky."""
    for layer in (0, 2, 5, 8):
        weight, bias = (weights[f"critic.convolutions.{layer}.{name}"] for name in ("weight", "bias"))
        images = F.conv2d(images, weight, bias, stride=2, padding=1)
        if layer:
            scale, shift = (weights[f"critic.convolutions.{layer + 1}.{name}"] for name in ("weight", "bias"))
            unit = [(one - one.mean()) / (one.var(correction=0) + 1e-5).sqrt() for one in images]
            images = torch.stack(unit) * scale[:, None, None] + shift[:, None, None]
        images = torch.maximum(images, 0.2 * images)
    return images.flatten(1)


def alpha_gan_loss(network: Any, step: Step) -> Tensor:
    """Rosca et al. 2017, Algorithm 1, with the code critic's terms the right way round; critics every second step."""
    films, weights = 2 * step.films - 1, dict(network.named_parameters())
    others = {name: weight.detach() for name, weight in weights.items()}

    def real_image(images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        answers = seen(images, weights) @ weights["critic.answer.weight"].T + weights["critic.answer.bias"]
        return 1 / (1 + (-answers).exp())

    def real_code(hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        for layer in (0, 2, 4):
            hidden = hidden @ weights[f"code_critic.{layer}.weight"].T + weights[f"code_critic.{layer}.bias"]
            hidden = torch.maximum(hidden, 0.2 * hidden) if layer < 4 else hidden
        return 1 / (1 + (-hidden).exp())

    codes = coded(films, weights)
    drawn = torch.randn(codes.shape, generator=step.generator)
    made = generated(torch.cat([codes, drawn]), weights)
    loss = 10 * (films - made[: len(films)]).abs().mean()
    loss = loss - real_image(made, others).log().mean() - real_code(codes, others).log().mean()
    if step.number % 2:
        loss = loss - real_image(films, weights).log().mean() - (1 - real_image(made.detach(), weights)).log().mean()
        loss = loss - real_code(drawn, weights).log().mean() - (1 - real_code(codes.detach(), weights)).log().mean()
    return loss


# ---------------------------------------------------------------------------------------------------- FAnoGAN by hand


def f_anogan_loss(network: Any, step: Step) -> Tensor:
    """Three steps of the critic, in the second of which the generator learns, too; then the encoder; on patches."""
    side, weights = 32, dict(network.named_parameters())
    others = {name: weight.detach() for name, weight in weights.items()}
    places = [torch.randint(SIDE - side + 1, (), generator=step.generator).item() for _ in range(2 * len(step.films))]
    real = torch.stack(
        [
            2 * one[:, top : top + side, left : left + side] - 1
            for one, top, left in zip(step.films, places[::2], places[1::2], strict=True)
        ]
    )
    if step.number == 3:
        kept = dict(network.named_buffers())
        made = generated(tanh(coded(real, weights, "encoder.0")), others, side, kept)
        features = seen(real, others) - seen(made, others)
        return (real - made).square().mean() + 5 * features.square().mean()

    def answers(images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        return seen(images, weights) @ weights["critic.answer.weight"].T + weights["critic.answer.bias"]

    fake = generated(torch.randn(len(real), 32, generator=step.generator), weights, side)
    shares = torch.rand(len(real), 1, 1, 1, generator=step.generator)
    between = (shares * real + (1 - shares) * fake).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(answers(between, weights).sum(), between, create_graph=True)
    steepness = torch.stack([slope.square().sum().sqrt() for slope in slopes])
    loss = answers(fake.detach(), weights).mean() - answers(real, weights).mean()
    loss = loss + 10 * (steepness - 1).square().mean()
    return loss - answers(fake, others).mean() if step.number == 1 else loss


# --------------------------------------------------------------------------------------------------- DeepSVDD by hand


def svdd_features(network: Any, films: Tensor, normed: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Three blocks of convolution, normalisation, leaky ReLU and 2 × 2 maxima, of films of mean 0 and mean size 1."""
    films = torch.stack([(one - one.mean()) / (one - one.mean()).abs().mean() for one in films])
    hidden = (films - network.lowest) / (network.highest - network.lowest)
    for block in (0, 4, 8):
        hidden = F.conv2d(hidden, network.get_parameter(f"encoder.blocks.{block}.weight"), padding=2)
        hidden = normed(hidden, block + 1)
        hidden = torch.maximum(hidden, 0.01 * hidden)
        hidden = hidden.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(-1, -2))
    return hidden


def svdd_loss(network: Any, step: Step) -> Tensor:
    """Mean squared distance of 128 numbers to the centre; neither scales nor shifts."""

    def of_batch(hidden: Tensor, layer: int) -> Tensor:
        centred = hidden - hidden.mean(dim=(0, 2, 3), keepdim=True)
        return centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-4).sqrt()

    codes = svdd_features(network, step.films, of_batch).flatten(1) @ network.encoder.code.weight.T
    return sum((code - network.centre).square().sum() for code in codes) / len(codes)


def svdd_bank(network: Any, films: Tensor) -> dict[str, Tensor]:
    """Mean feature map."""

    def as_kept(hidden: Tensor, layer: int) -> Tensor:
        norm = network.encoder.blocks[layer]
        return (hidden - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-4).sqrt()

    maps = [svdd_features(network, one[None], as_kept)[0] for one in films]
    return {"normal_map.mean": torch.stack(maps).mean(dim=0)}


# -------------------------------------------------------------------------------------------------- PatchSVDD by hand


def small_code(network: Any, patch: Tensor) -> Tensor:
    """64 numbers of 32² pixels: eight convolutions 3 × 3, the first one of stride 2, none of which pads."""
    hidden = patch[None]
    for layer in range(8):
        weight, bias = (network.get_parameter(f"encoders.small.{2 * layer}.{name}") for name in ("weight", "bias"))
        hidden = F.conv2d(hidden, weight, bias, stride=1 if layer else 2)
        hidden = torch.tanh(hidden) if layer == 7 else torch.maximum(hidden, 0.1 * hidden)
    return hidden[0, :, 0, 0]


def patch_svdd_loss(network: Any, step: Step) -> Tensor:
    """Cross-entropy of eight directions from the difference of two codes, and distance of nearly the same patches."""

    def code(number: int, corner: Tensor, brightness: float | Tensor = 0.0, noise: float | Tensor = 0.0) -> Tensor:
        top, left = corner.tolist()
        patch = (step.films[number] - network.mean_image)[:, top : top + 32, left : left + 32]
        return small_code(network, patch + 0.02 * (brightness + noise))

    count = len(step.films)
    first, second, labels = draw_neighbours(count, 32, (SIDE, SIDE), step.generator)
    brightness = torch.randn(2 * count, 1, 1, 1, generator=step.generator)
    noise = torch.randn(2 * count, 1, 32, 32, generator=step.generator)
    losses = []
    for i in range(count):
        j = i + count
        hidden = code(i, first[i], brightness[i], noise[i]) - code(i, second[i], brightness[j], noise[j])
        for layer in (0, 2, 4):
            weight, bias = (network.get_parameter(f"classifiers.0.{layer}.{name}") for name in ("weight", "bias"))
            hidden = weight @ hidden + bias
            hidden = torch.maximum(hidden, 0.1 * hidden) if layer < 4 else hidden
        losses.append(hidden.exp().sum().log() - hidden[labels[i]])
    first, second, _ = draw_shifted(count, 32, (SIDE, SIDE), step.generator)
    apart = [i for i in range(count) if first[i].tolist() != second[i].tolist()]  # the same patch has the same code
    losses += [0.5 * (code(i, first[i]) - code(i, second[i])).square().sum().sqrt() for i in apart]
    return torch.stack(losses).sum() / count


def patch_svdd_bank(network: Any, films: Tensor) -> dict[str, Tensor]:
    """Code of each patch at its row, column and film, and the mean film."""
    places = range(0, SIDE - 31, 16)
    codes = [
        torch.stack([small_code(network, (one - films.mean(dim=0))[:, y : y + 32, x : x + 32]) for one in films])
        for y in places
        for x in places
    ]
    references = torch.stack(codes).unflatten(0, (len(places), len(places)))
    return {"mean_image": films.mean(dim=0), "banks.0.search.references": references}


SHORT = {"image_size": SIDE, "max_steps": 4, "steps_per_epoch": 2, "seed": 3, "backbone": "resnet10t"}

#: One entry for each detector that trains.
CASES = (
    DetectorCase(
        AlphaGAN,
        {"image_size": SIDE, "width": 4, "latent_size": 8, "code_hidden": 16}
        | {"max_steps": 4, "steps_per_epoch": 2, "seed": 3},
        loss=alpha_gan_loss,
        rule=partial(adamw, betas=(0.5, 0.9)),  # without decay it is Adam
        rate=8e-4,
        decay=lambda weight: 0.0,
    ),
    DetectorCase(
        AnatPaste,
        SHORT | {"num_workers": 0, "optimizer": "momentum", "checkpoint": "last", "fine_map": False},
        loss=anat_paste_loss,
        rule=momentum,
        rate=0.03,
        decay=lambda weight: 3e-5,
        bank=anat_paste_bank,
    ),
    DetectorCase(
        FAnoGAN,
        {"image_size": SIDE, "patch_size": 32, "width": 8, "latent_size": 32, "kappa": 5.0, "critic_steps": 2}
        | {"learning_rate": 5e-4, "encoder_learning_rate": 5e-4}
        | {"max_steps": 4, "gan_steps": 3, "steps_per_epoch": 2, "seed": 3},
        loss=f_anogan_loss,
        rule=partial(adamw, betas=(0.0, 0.9)),  # without decay it is Adam
        rate=5e-4,
        decay=lambda weight: 0.0,
        constant=True,
    ),
    DetectorCase(
        DeepSVDD,
        {"image_size": SIDE, "max_steps": 4, "steps_per_epoch": 2, "seed": 3, "pretraining_steps": 0},
        loss=svdd_loss,
        rule=adam,
        rate=1e-4,
        decay=lambda weight: 5e-7,
        bank=svdd_bank,
    ),
    DetectorCase(
        FeatureDistillation,
        {name: SHORT[name] for name in ("image_size", "max_steps", "steps_per_epoch", "seed")}
        | {"teacher": "test_efficientnet", "pre_trained": False},
        loss=distillation_loss,
        rule=adamw,  # Adam, where nothing decays
        rate=1e-3,
        decay=lambda weight: 0.0,
        bank=distillation_bank,
        frozen="teacher",
    ),
    DetectorCase(
        MultiResPatchSSL,
        SHORT
        | {"patch_sizes": (16, 32), "encoder_size": 16, "patches_per_step": 6, "warmup_steps": 2, "checkpoint": "last"}
        | {"learning_rate": 4.8, "feature_dim": 0, "bank_dtype": "float32", "distance": "euclidean"},
        loss=simclr_loss,
        rule=lars,
        rate=4.8,
        decay=lambda weight: 1e-6 if weight.ndim > 1 else 0.0,
        warmup=2,
        bank=multires_bank,
    ),
    DetectorCase(
        AutoEncoder,
        {"image_size": SIDE, "max_steps": 4, "steps_per_epoch": 2, "seed": 3, "hidden_size": 32},
        loss=auto_encoder_loss,
        rule=adamw,  # without decay it is Adam
        rate=1e-3,
        decay=lambda weight: 0.0,
    ),
    DetectorCase(
        PatchSVDD,
        {
            "image_size": SIDE,
            "max_steps": 4,
            "steps_per_epoch": 2,
            "seed": 3,
            "patch_sizes": (32,),
            "width": 4,
            "svdd_weight": 0.5,
        },
        loss=patch_svdd_loss,
        rule=adamw,  # Adam, where nothing decays
        rate=1e-3,
        decay=lambda weight: 0.0,
        bank=patch_svdd_bank,
    ),
    DetectorCase(
        PoissonInterpolation,
        # Half of the side, as preset, would lead to where a ReLU's slope is left to rounding.
        SHORT | {"num_workers": 0, "weight_decay": 0.02, "shift": 0.4},
        loss=interpolation_loss,
        rule=adam,
        rate=1e-3,
        decay=lambda weight: 0.02 if weight.ndim > 1 else 0.0,
    ),
    DetectorCase(
        SQUID,
        {"image_size": SIDE, "max_steps": 4, "steps_per_epoch": 2, "seed": 3, "width": 2, "slots": 8}
        | {"learning_rate": 1e-3, "discriminator_learning_rate": 1e-3, "weight_decay": 0.02},
        loss=squid_loss,
        rule=squid_adam,
        rate=1e-3,
        decay=lambda weight: 0.02,
        undecayed="discriminator",
        schedule=lambda step, length: 0.1 + 0.9 * (1 + math.cos(math.pi * step / (1.5 * length))) / 2,
    ),
    DetectorCase(
        ToyDetector,
        {"image_size": SIDE, "max_steps": 4, "seed": 3},
        loss=toy_loss,
        rule=adamw,
        rate=1e-3,
        decay=lambda weight: 0.0,
    ),
)


def rate_by_hand(case: DetectorCase, step: int, max_steps: int) -> float:
    """The case's own, or linear warm-up to the highest rate, then that, or half a cosine that is 0 at ``max_steps``."""
    if case.schedule:
        return case.rate * case.schedule(step, max_steps)
    if step < case.warmup:
        return case.rate * (step + 1) / case.warmup
    if case.constant:
        return case.rate
    return case.rate * (1 + math.cos(math.pi * (step - case.warmup) / (max_steps - case.warmup))) / 2
