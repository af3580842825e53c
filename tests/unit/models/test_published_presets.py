"""``preset: paper`` of each detector against the numbers of its paper, and where they stand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from anomalib_cxr.models import AnatPaste, FAnoGAN, MultiResPatchSSL, PoissonInterpolation

#: Sato et al., iScience 2023 (arXiv 2205.04282): "method" is that section, "code" run_training.py, published with it.
SATO = [
    ("method: input", lambda m: m.input_size, (256, 256)),
    ("method: backbone", lambda m: blocks(m.model.backbone), (BasicBlock, [2, 2, 2, 2])),
    ("method: from scratch", lambda m: m.hparams["pre_trained"], False),
    ("method: epochs of 256 steps each", lambda m: m.max_steps, 256 * 256),
    ("method: learning rate", lambda m: m.learning_rate, 0.03),
    ("code: momentum", lambda m: m.momentum, 0.9),
    ("code: weight decay", lambda m: m.weight_decay, 0.00003),
    ("code: biases and norms decay, too", lambda m: groups(m), [(0.03, 0.00003)]),
    ("method: schedule", lambda m: (m.lr_schedule, m.warmup_steps), ("cosine", 0)),
    ("method: checkpoint of the best AUC in validation", lambda m: m.checkpoint, "best"),
    ("code: intensities are jittered", lambda m: m.color_jitter, 0.1),
    ("code: head", lambda m: widths(m.model.head), [512, 128]),
    ("code: intensities in [-1, 1]", lambda m: (m.model.mean, m.model.std), (0.5, 0.5)),
    ("method: into lungs, blurred", lambda m: (m.pasting.segmentation, m.pasting.blur), (True, True)),
    ("method: area", lambda m: m.pasting.area, (0.02, 0.15)),
    ("method: aspect", lambda m: m.pasting.aspect, (0.3, 1 / 0.3)),
    ("method: blur", lambda m: m.pasting.sigma, (0, 15)),
    ("method: score by kernel density, bandwidth", lambda m: m.model.density.bandwidth, 1.0),
    ("method: one Grad-CAM", lambda m: m.model.fine_map, False),
]

#: Kim, Moon and Lee, Sci. Rep. 2023 (doi 10.1038/s41598-023-30589-w): "method" is that section, "results" its best
#: setting; SimCLR (Chen et al., ICML 2020) where it leaves things open.
KIM = [
    ("method: sizes", lambda m: m.model.patch_sizes, (128, 256, 512, 1024)),
    ("method: input that fits its figure (it prints none)", lambda m: m.input_size, (2048, 2048)),
    ("method: grid without overlap", lambda m: set(m.model.strides), {None}),
    ("method: one encoder a size", lambda m: len(m.model.encoders), 4),
    ("method: encoder", lambda m: blocks(m.model.encoder(3).model), (Bottleneck, [3, 4, 6, 3])),
    ("method: from scratch", lambda m: m.hparams["pre_trained"], False),
    ("method: patches as cut", lambda m: m.model.encoder(0).encoder_size, None),
    ("method: two-layer head", lambda m: widths(m.model.heads[0]), [2048, 128]),
    ("method: batch", lambda m: m.patches_per_step, 256),
    ("method: learning rate", lambda m: m.learning_rate, 4.8),
    ("method: optimiser", lambda m: m.optimizer_name, "lars"),
    ("method, and SimCLR's section 2.2: weight decay, none of vectors", lambda m: groups(m), [(4.8, 0.0), (4.8, 1e-6)]),
    ("method: rotation", lambda m: m.views.degrees, 5),
    ("method: crop", lambda m: m.views.crop_area, (0.5, 0.5)),
    (
        "method: 100 epochs of each size's patches, of 1,802 images",
        lambda m: m._steps,
        (180_200, 45_050, 11_262, 2_816),
    ),
    ("SimCLR, section 2.2: cosine after warm-up", lambda m: m.lr_schedule, "cosine"),
    (
        "SimCLR, section 2.2: the first ten epochs warm up",
        lambda m: [group["warmup_steps"] for group in m.parameter_groups()],
        [18_020, 4_505, 1_126, 281],
    ),
    ("SimCLR, Table 5: temperature", lambda m: m.loss.temperature, 0.1),
    ("method: patch distance (0 or 1)", lambda m: m.model.reference_banks()[0].search.patch_distance, 1),
    ("results: distance", lambda m: m.model.reference_banks()[0].search.distance, "mahalanobis"),
    ("method: all features", lambda m: [b.feature_dim for b in m.model.reference_banks()], [None] * 4),
    ("method: all references", lambda m: [b.max_references for b in m.model.reference_banks()], [None] * 4),
    ("results: weights", lambda m: m.model.weights, (0.1, 1.2, 1.2, 1.0)),
    ("method: highest pixel", lambda m: m.model.score, "max"),
]

RESIDUAL = ["ResidualGenerator", "ResidualCritic"]
STEPS = [7 * 1_000_000 // 64, 50_000]

#: Tan et al., MICCAI 2021 (arXiv 2107.02622), with its code.
TAN = [
    ("input", lambda m: m.input_size, (256, 256)),
    ("blend by gradients", lambda m: m.pasting.blend, "poisson"),
    ("half side of the square", lambda m: m.pasting.patch_share, (0.05, 0.2)),
    ("share of the other image", lambda m: m.pasting.alpha, (0.05, 0.95)),
    ("anywhere", lambda m: m.pasting.segmentation, False),
    ("network: stages", lambda m: stages(m.model.network), (64, 128, 256, 256, 256, 128, 64, 16, 1)),
    ("network: no biases", lambda m: {layer.bias for layer in convolutions(m.model)}, {None}),
    ("from scratch", lambda m: m.hparams["pre_trained"], False),
    ("optimiser", lambda m: (m.optimizer_name, m.lr_schedule, m.warmup_steps), ("adam", "constant", 0)),
    ("rate, and weight decay of weights", lambda m: groups(m), [(0.001, 0.0), (0.001, 0.0005)]),
    ("50 passes over 17,852 images, 64 a step", lambda m: m.max_steps, 14_000),
]

#: Schlegl et al., Medical Image Analysis 54, 2019, with its code.
SCHLEGL = [
    ("input", lambda m: (m.input_size, m.model.side), ((64, 64), 64)),
    ("networks", lambda m: [type(p).__name__ for p in (m.model.generator, m.model.critic)], RESIDUAL),
    ("numbers of a code", lambda m: (m.model.latent_size, m.model.encoder[0][-1].out_features), (128, 128)),
    ("features", lambda m: m.model.critic.answer.in_features, 8192),
    ("range of the encoder's codes", lambda m: type(m.model.encoder[-1]), nn.Tanh),
    ("kappa", lambda m: m.model.kappa, 1),
    ("flips", lambda m: m.model.horizontal_flips, True),
    ("critic steps", lambda m: m.critic_steps, 5),
    ("rates, no weight decay", lambda m: groups(m), [(5e-5, 0.0), (1e-4, 0.0)]),
    ("constant", lambda m: m.lr_schedule, "constant"),
    ("7 passes over a million patches, then the encoder, 64 a step", lambda m: [s.steps for s in m.stages], STEPS),
]


def stages(network: Any) -> tuple[int, ...]:
    """Channels after each stage of an encoder and decoder of wide blocks."""
    return tuple(block.around[0].out_channels for block in (*network.encoder, *network.decoder))


def blocks(resnet: Any) -> tuple[type, list[int]]:
    """Kind of a ResNet's blocks, and how many each stage has."""
    return type(resnet.layer1[0]), [len(getattr(resnet, f"layer{stage}")) for stage in (1, 2, 3, 4)]


def widths(head: nn.Module) -> list[int]:
    return [layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear)]


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def groups(model: Any) -> list[tuple[float, float]]:
    """Highest rate and weight decay of the parameter groups, each pair once."""
    optimizer: torch.optim.Optimizer = model.configure_optimizers()["optimizer"]
    return sorted({(group["initial_lr"], group["weight_decay"]) for group in optimizer.param_groups})


@pytest.fixture(scope="module")
def papers() -> dict[str, Any]:
    kim = MultiResPatchSSL(preset="paper")
    kim._steps = kim.steps_of_sizes(1802)  # as `setup` does, whose length is the training set's
    tan = PoissonInterpolation(preset="paper")
    schlegl = FAnoGAN(preset="paper")
    return {"Sato": AnatPaste(preset="paper", num_workers=0), "Kim": kim, "Tan": tan, "Schlegl": schlegl}


@pytest.mark.parametrize(
    ("paper", "where", "found", "printed"),
    [
        (paper, *row)
        for paper, table in (("Sato", SATO), ("Kim", KIM), ("Tan", TAN), ("Schlegl", SCHLEGL))
        for row in table
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_paper_preset_is_what_the_paper_says(
    papers: dict[str, Any], paper: str, where: str, found: Callable[[Any], Any], printed: Any
) -> None:
    assert found(papers[paper]) == printed, where
