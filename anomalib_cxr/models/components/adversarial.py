"""What a generator and its critic learn from: adversarial losses, the gradient penalty, whose turn it is."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.checks import check_choice
from anomalib_cxr.devices import on_device

AdversarialLoss = Literal["bce", "lsgan", "wasserstein"]


def adversarial_loss(logits: Tensor, real: bool, kind: AdversarialLoss = "bce") -> Tensor:
    """Loss of a critic's answers, were they all to be "real" or all "fake".

    A critic's own loss is that of real things as real and that of fakes as fake. A generator's is that of its fakes as
    *real* (for ``"bce"`` the non-saturating one), with the critic
    :func:`~anomalib_cxr.models.components.players.held`.

    Args:
        logits: What the critic says, any shape; higher is more real.
        real: What it should have said.
        kind: ``"bce"``, the cross-entropy of the logit's sigmoid (Goodfellow et al. 2014); ``"lsgan"``, the squared
            distance from 1 or 0, without the paper's half (Mao et al. 2017); ``"wasserstein"``, the negative or
            positive answer (Arjovsky et al. 2017), which wants a :func:`gradient_penalty`.

    Returns:
        Scalar float32, the mean over all answers.

    Raises:
        ValueError: If there is no such loss.
    """
    check_choice("kind", kind, AdversarialLoss)
    answers = logits.float()
    if kind == "bce":
        return F.softplus(-answers if real else answers).mean()
    if kind == "lsgan":
        return (answers - float(real)).square().mean()
    return -answers.mean() if real else answers.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator: torch.Generator
) -> Tensor:
    """How far a critic's slope is from 1 between real and fake things (Gulrajani et al. 2017, equation 3).

    ``E (‖∇ critic(u x + (1 − u) x̃)‖ − 1)²`` with one ``u`` from the uniform distribution for each pair, in float32 also
    where the rest of a step is not. Its weight is the caller's (published: 10).

    Args:
        critic: Things (B, …) to answers (B,); the answer to one must not depend on the others of its batch.
        real: (B, …).
        fake: (B, …), of the same shape; nothing before it learns from the penalty.
        generator: On the CPU.

    Returns:
        Scalar float32.
    """
    share = torch.rand((len(real), *[1] * (real.ndim - 1)), generator=generator)
    with torch.autocast(real.device.type, enabled=False):
        between = torch.lerp(fake.detach().float(), real.detach().float(), on_device(share, real.device))
        between.requires_grad_()
        (slopes,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return (slopes.flatten(1).norm(dim=1) - 1).square().mean()


def takes_turn(step: int, every: int) -> bool:
    """Whether a player that plays in each ``every``-th step only plays in this one.

    In the last of each ``every`` steps, so that the others come first, as in the papers. Both then learn from the same
    batch and from one another as they were before the step, where the papers let one wait for the other.

    Args:
        step: Steps done before it, 0 or more.
        every: 1 or more.
    """
    return (step + 1) % every == 0


def refuse_running_statistics(critic: nn.Module) -> None:
    """Raise if a critic keeps running statistics: real, fake and mixed batches would all write to them.

    Args:
        critic: Any module.

    Raises:
        ValueError: Naming the first layer that does.
    """
    for name, layer in critic.named_modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats:
            msg = (
                f"The critic's layer {name!r} ({type(layer).__name__}) keeps running statistics, and real and fake "
                "batches would both be added to them: normalise by layer, instance or spectrum instead."
            )
            raise ValueError(msg)


def initialise_like_dcgan(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02²), scales of normalisation from N(1, 0.02²); biases are 0 (Radford et al. 2016).

    Args:
        module: Whose layers, however deep inside, are drawn anew from torch's own generator.
    """
    for layer in module.modules():
        weights, biases = (getattr(layer, name, None) for name in ("weight", "bias"))
        normalises = isinstance(layer, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm))
        transforms = isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))
        if weights is not None and (normalises or transforms):
            nn.init.normal_(weights, mean=1.0 if normalises else 0.0, std=0.02)
        if biases is not None and (normalises or transforms):
            nn.init.zeros_(biases)
