"""FAnoGAN's three networks, what each learns from, and the score: what is exported."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_cxr.checks import check_choice
from anomalib_cxr.devices import on_device
from anomalib_cxr.models.components.adversarial import (
    adversarial_loss,
    gradient_penalty,
    initialise_like_dcgan,
    refuse_running_statistics,
)
from anomalib_cxr.models.components.players import at_rest, held
from anomalib_cxr.models.components.reconstruction.convolutional import HALVINGS, check_side
from anomalib_cxr.models.components.reconstruction.errors import on_both_sides_of_zero
from anomalib_cxr.models.components.reconstruction.generative import ConvCoder, ConvCritic, ConvGenerator
from anomalib_cxr.models.components.windows import cut_windows, join_windows
from anomalib_cxr.models.f_anogan.networks import ResidualCoder, ResidualCritic, ResidualGenerator
from anomalib_cxr.models.f_anogan.tiles import random_tiles

Network = Literal["residual", "conv"]
CodeRange = Literal["tanh", "none"]
TileScore = Literal["mean", "highest"]

#: Weight of the gradient penalty (Gulrajani et al. 2017).
_PENALTY = 10.0


class FAnoGANModel(nn.Module):
    """Makes images of codes, codes of images, and scores an image by what is lost on the way there and back.

    Args:
        image_size: Side of the square images, a multiple of 16 from 32 on.
        patch_size: Side of what the networks see, which divides ``image_size``; None is the whole image.
        network: ``"residual"``, or ``"conv"``, a sixteenth of its work at the same width.
        width: Channels of the critic's first layer.
        latent_size: Numbers of a code.
        kappa: Weight κ of the difference of the critic's features, beside that of the pixels.
        code_range: ``"tanh"`` keeps the encoder's codes in [−1, 1], ``"none"`` does not.
        tile_score: Where there are patches, an image's score is that of its tiles' ``"mean"`` or of the ``"highest"``.
        horizontal_flips: Mirror training images with probability 1/2.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(
        self,
        image_size: int = 64,
        patch_size: int | None = None,
        network: Network = "conv",
        width: int = 16,
        latent_size: int = 128,
        kappa: float = 1.0,
        code_range: CodeRange = "tanh",
        tile_score: TileScore = "mean",
        horizontal_flips: bool = False,
    ) -> None:
        super().__init__()
        check_choice("network", network, Network)
        check_choice("code_range", code_range, CodeRange)
        check_choice("tile_score", tile_score, TileScore)
        check_side(image_size)
        if patch_size is not None:
            _check_patch(patch_size, image_size)
        for name, size in (("width", width), ("latent_size", latent_size)):
            if size < 1:
                msg = f"{name} must be 1 or more, not {size}."
                raise ValueError(msg)
        if not kappa >= 0:
            msg = f"kappa must be 0 or more, not {kappa}."
            raise ValueError(msg)
        self.side = patch_size or image_size
        self.tiles = image_size // self.side
        coder, generator, critic = _NETWORKS[network]
        self.generator = generator(self.side, width, latent_size)
        self.critic = critic(self.side, width)
        refuse_running_statistics(self.critic)
        ends = nn.Tanh() if code_range == "tanh" else nn.Identity()
        self.encoder = nn.Sequential(coder(self.side, width, latent_size), ends)
        if network == "conv":
            initialise_like_dcgan(self)
        self.latent_size = latent_size
        self.kappa = kappa
        self.tile_score = tile_score
        self.horizontal_flips = horizontal_flips

    def seen(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What of training images the networks see.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].
            generator: On the CPU, for places and flips.

        Returns:
            (B, 1, side, side) on [−1, 1].
        """
        grey = on_both_sides_of_zero(images)
        if self.tiles > 1:
            grey = random_tiles(grey, self.side, generator)
        if self.horizontal_flips:
            flipped = on_device(torch.rand(len(grey), 1, 1, 1, generator=generator) < 0.5, grey.device)
            grey = torch.where(flipped, grey.flip(-1), grey)
        return grey

    def playing_losses(
        self, images: Tensor, generator: torch.Generator, generator_plays: bool = True
    ) -> dict[str, Tensor]:
        """What critic and generator learn from, of normal images: the first stage.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].
            generator: On the CPU, for all that is drawn.
            generator_plays: Whether the generator learns in this step.

        Returns:
            Scalars whose sum is trained, by name: ``critic`` and ``penalty``, weighted, teach the critic, ``generator``
            the generator.
        """
        real = self.seen(images, generator)
        codes = on_device(torch.randn(len(real), self.latent_size, generator=generator), real.device)
        with torch.set_grad_enabled(generator_plays):
            fake = self.generator(codes)
        told_apart = adversarial_loss(self.critic(real), real=True, kind="wasserstein") + adversarial_loss(
            self.critic(fake.detach()), real=False, kind="wasserstein"
        )
        losses = {"critic": told_apart, "penalty": _PENALTY * gradient_penalty(self.critic, real, fake, generator)}
        if generator_plays:
            with held(self.critic):
                losses["generator"] = adversarial_loss(self.critic(fake), real=True, kind="wasserstein")
        return losses

    def coding_losses(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What the encoder learns from, of normal images: the second stage, "izi_f".

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].
            generator: On the CPU, for all that is drawn.

        Returns:
            ``pixels`` and ``features``, weighted: the parts of the score, their means over the batch.
        """
        wanted = self.seen(images, generator)
        with at_rest(self.generator, self.critic):
            pixels, features = self._parts(wanted, self.generator(self.encoder(wanted)))
        return {"pixels": pixels.mean(), "features": self.kappa * features.mean()}

    def _parts(self, wanted: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared difference of the pixels and of the critic's features, (B,) each, in float32."""
        features = self.critic.features(wanted).float() - self.critic.features(made).float()
        return (wanted - made).float().square().mean(dim=(1, 2, 3)), features.square().mean(dim=1)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``pred_score`` (B,), the mean squared difference of the pixels and κ times that of the critic's features,
            of all tiles or of the highest; ``anomaly_map`` (B, 1, H, W), the absolute error of each pixel on [−1, 1].
            Higher is more abnormal.
        """
        wanted = cut_windows(on_both_sides_of_zero(images), self.tiles)
        made = self.generator(self.encoder(wanted))
        pixels, features = self._parts(wanted, made)
        scores = (pixels + self.kappa * features).reshape(-1, self.tiles**2)
        return InferenceBatch(
            pred_score=scores.mean(dim=1) if self.tile_score == "mean" else scores.amax(dim=1),
            anomaly_map=join_windows((wanted - made).abs(), self.tiles),
        )


_NETWORKS: Mapping[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "residual": (ResidualCoder, ResidualGenerator, ResidualCritic),
    "conv": (ConvCoder, ConvGenerator, ConvCritic),
}


def _check_patch(patch_size: int, image_size: int) -> None:
    factor = 2**HALVINGS
    if patch_size < 2 * factor or patch_size % factor or image_size % patch_size:
        fitting = [side for side in range(2 * factor, image_size + 1, factor) if image_size % side == 0]
        listed = ", ".join(str(side) for side in fitting)
        msg = f"patch_size must be a multiple of {factor} that divides image_size={image_size}, one of {listed}, not "
        raise ValueError(f"{msg}{patch_size}.")
