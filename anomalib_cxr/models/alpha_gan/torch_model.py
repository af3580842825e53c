"""AlphaGAN's four networks, what each learns from, and the score: what is exported is the encoder and the generator."""

from typing import Literal

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_cxr.checks import check_choice
from anomalib_cxr.devices import on_device
from anomalib_cxr.models.components.adversarial import (
    adversarial_loss,
    initialise_like_dcgan,
    refuse_running_statistics,
)
from anomalib_cxr.models.components.players import held
from anomalib_cxr.models.components.reconstruction.convolutional import check_side
from anomalib_cxr.models.components.reconstruction.errors import on_both_sides_of_zero
from anomalib_cxr.models.components.reconstruction.generative import ConvCoder, ConvCritic, ConvGenerator

Score = Literal["code_norm", "error"]


class AlphaGANModel(nn.Module):
    """Codes images, makes them anew, and scores them by how unusual their code is, or by what was lost.

    Args:
        image_size: Side of the square images, a multiple of 16 from 32 on.
        width: Channels of the first layer of encoder and critic, and of the generator's last but one.
        latent_size: Numbers of the code.
        code_hidden: Units of the code critic's two hidden layers.
        reconstruction_weight: Weight λ of the mean absolute error.
        score: ``"code_norm"``, the Euclidean norm of the code, or ``"error"``, the mean absolute error.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(
        self,
        image_size: int = 64,
        width: int = 16,
        latent_size: int = 128,
        code_hidden: int = 256,
        reconstruction_weight: float = 10.0,
        score: Score = "code_norm",
    ) -> None:
        super().__init__()
        check_choice("score", score, Score)
        check_side(image_size)
        for name, size in (("width", width), ("latent_size", latent_size), ("code_hidden", code_hidden)):
            if size < 1:
                msg = f"{name} must be 1 or more, not {size}."
                raise ValueError(msg)
        if not reconstruction_weight >= 0:
            msg = f"reconstruction_weight must be 0 or more, not {reconstruction_weight}."
            raise ValueError(msg)
        self.encoder = ConvCoder(image_size, width, latent_size)
        self.generator = ConvGenerator(image_size, width, latent_size)
        self.critic = ConvCritic(image_size, width)
        self.code_critic = nn.Sequential(
            nn.Linear(latent_size, code_hidden),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(code_hidden, code_hidden),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(code_hidden, 1),
            nn.Flatten(0),
        )
        self.reconstruction_weight = reconstruction_weight
        self.score = score
        for critic in (self.critic, self.code_critic):
            refuse_running_statistics(critic)
        initialise_like_dcgan(self)

    def losses(self, images: Tensor, generator: torch.Generator, critics_play: bool = True) -> dict[str, Tensor]:
        """What the players learn from, of normal images.

        Images are made of the codes of images and of codes drawn from N(0, 1), in one pass: both are normalised by the
        same statistics, which are also those of evaluation mode.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].
            generator: On the CPU, for the drawn codes.
            critics_play: Whether the critics learn in this step.

        Returns:
            Scalars whose sum is trained, by name: ``reconstruction``, weighted, and ``images`` teach encoder and
            generator, ``codes`` the encoder, ``critic`` and ``code_critic`` the critics.
        """
        wanted = on_both_sides_of_zero(images)
        codes = self.encoder(wanted)
        drawn = on_device(torch.randn(codes.shape, generator=generator), codes.device)
        made = self.generator(torch.cat([codes, drawn]))
        with held(self.critic, self.code_critic):
            losses = {
                "reconstruction": self.reconstruction_weight * (wanted - made[: len(wanted)]).abs().mean(),
                "images": adversarial_loss(self.critic(made), real=True),
                "codes": adversarial_loss(self.code_critic(codes), real=True),
            }
        if critics_play:
            losses["critic"] = _told_apart(self.critic, wanted, made)
            losses["code_critic"] = _told_apart(self.code_critic, drawn, codes)
        return losses

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``pred_score`` (B,), the norm of the code or the mean of the map; ``anomaly_map`` (B, 1, H, W), the absolute
            error of each pixel on [−1, 1]. Higher is more abnormal.
        """
        wanted = on_both_sides_of_zero(images)
        codes = self.encoder(wanted)
        errors = (wanted - self.generator(codes)).abs()
        score = codes.norm(dim=1) if self.score == "code_norm" else errors.mean(dim=(1, 2, 3))
        return InferenceBatch(pred_score=score, anomaly_map=errors)


def _told_apart(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """A critic's own loss; what made the fakes learns nothing from it."""
    return adversarial_loss(critic(real), real=True) + adversarial_loss(critic(fake.detach()), real=False)
