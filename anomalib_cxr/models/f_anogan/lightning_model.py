"""FAnoGAN as an Anomalib module: training glue."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor

from anomalib_cxr.callbacks.checkpoint_choice import Checkpoint
from anomalib_cxr.models.components.adversarial import takes_turn
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.reconstruction.convolutional import check_side
from anomalib_cxr.models.components.stages import Stage
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.step_training import StepTrainingMixin
from anomalib_cxr.models.f_anogan.torch_model import CodeRange, FAnoGANModel, Network, TileScore

#: What ``preset`` sets; an argument given by the user wins. "paper" is Schlegl et al.'s setting, "laptop" is ours.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "network": "conv", "width": 16, "horizontal_flips": False, "critic_steps": 2, "learning_rate": 5e-4,
        "encoder_learning_rate": 5e-4, "max_steps": 600, "gan_steps": 400, "steps_per_epoch": 200,
    },
    "paper": {
        "network": "residual", "width": 64, "horizontal_flips": True, "critic_steps": 5, "learning_rate": 1e-4,
        "encoder_learning_rate": 5e-5, "max_steps": 159_375, "gan_steps": 109_375, "steps_per_epoch": 3_125,
    },
}  # fmt: skip
#: What the published optimiser has besides.
_ADAM: dict[str, Any] = {"betas": (0.0, 0.9)}


class FAnoGAN(StepTrainingMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """FAnoGAN: a generator of normal images, an encoder that inverts it, and what is lost there and back.

    Schlegl et al., "f-AnoGAN: Fast unsupervised anomaly detection with generative adversarial networks" (Medical Image
    Analysis 54, 2019). Stage ``gan``: a generator makes normal images of codes drawn from N(0, 1), against a critic
    with a gradient penalty (WGAN-GP, Gulrajani et al. 2017). Stage ``encoder``: with both at rest, an encoder learns to
    find codes whose images equal the given ones, in their pixels and in the critic's features ("izi_f"). The same sum
    is the score.

    The batch size is the datamodule's ``train_batch_size`` (published: 64).

    Args:
        preset: ``"laptop"`` (ours: strided convolutions, 400 and 200 steps) or ``"paper"`` (residual networks of width
            64 for 64², five critic steps a generator step, flips, rates 1e-4 and 5e-5, 50,000 steps of the encoder, and
            as many of the critic as 7 passes over a million patches). The arguments whose default is None override it.
        image_size: Side of the square model input in pixels, a multiple of 16 from 32 on.
        patch_size: Side of what the networks see, which divides ``image_size``. None is the whole image, reduced, as in
            the second of Kim et al.'s two versions (Sci. Rep. 2023); with patches it is their first: one patch of a
            larger image a step, anywhere, and tiles side by side at test.
        tile_score: Of patches: an image's score is the ``"mean"`` or the ``"highest"`` of its tiles' (both ours).
        network: ``"residual"`` (published), or ``"conv"``, strided convolutions (ours).
        width: Channels of the critic's first layer.
        latent_size: Numbers of a code.
        kappa: Weight κ of the difference of features.
        code_range: ``"tanh"`` (published) keeps the encoder's codes in [−1, 1], though the generator has learnt from
            normally distributed ones; ``"none"`` lets it say all of them.
        horizontal_flips: Mirror training images with probability 1/2: published, and puts the heart on both sides.
        critic_steps: Steps of the critic for each step of the generator.
        max_steps: Optimiser steps of the whole training, of critic and encoder.
        gan_steps: The first of them, the critic's; the others are the encoder's. None takes the preset's, or where
            ``max_steps`` is given the preset's share of it.
        steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None takes the preset's,
            made to divide.
        optimizer: Any optimiser name of timm; ``"adam"`` has the moments 0 and 0.9. Published for the encoder is
            RMSProp, which is Adam without its first moment, but for the correction of the first steps.
        learning_rate: Rate of critic and generator.
        encoder_learning_rate: Rate of the encoder.
        checkpoint: ``"last"``, or ``"best"`` of the encoder's stage by AUROC on the labelled validation split.
        seed: Seed of weights, order and all that is drawn.
        films_in_memory: Keep the training films in memory at the model's size, on the device; the numbers are the same.
            None does so where it pays and fits.
        pre_processor: As in Anomalib; the default resizes to ``image_size``.
        post_processor: As in Anomalib; the default keeps ranks.
        evaluator: As in Anomalib; the default adds AUROC on validation.
        visualizer: As in Anomalib.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    map_description = "absolute error of the reconstruction"

    def __init__(
        self,
        preset: Literal["laptop", "paper"] = "laptop",
        image_size: int = 64,
        patch_size: int | None = None,
        tile_score: TileScore = "mean",
        network: Network | None = None,
        width: int | None = None,
        latent_size: int = 128,
        kappa: float = 1.0,
        code_range: CodeRange = "tanh",
        horizontal_flips: bool | None = None,
        critic_steps: int | None = None,
        max_steps: int | None = None,
        gan_steps: int | None = None,
        steps_per_epoch: int | None = None,
        optimizer: str = "adam",
        learning_rate: float | None = None,
        encoder_learning_rate: float | None = None,
        checkpoint: Checkpoint = "last",
        seed: int = 0,
        films_in_memory: bool | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        resolved = resolve_preset(
            PRESETS,
            preset,
            network=network,
            width=width,
            horizontal_flips=horizontal_flips,
            critic_steps=critic_steps,
            max_steps=max_steps,
            gan_steps=gan_steps,
            learning_rate=learning_rate,
            encoder_learning_rate=encoder_learning_rate,
        )
        if gan_steps is None and max_steps is not None:
            share = PRESETS[preset]["gan_steps"] / PRESETS[preset]["max_steps"]
            resolved.gan_steps = min(max(1, round(share * max_steps)), max_steps - 1)
        check_side(image_size)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor((image_size, image_size))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.gan_steps = resolved.gan_steps
        self.critic_steps = resolved.critic_steps
        self.encoder_learning_rate = resolved.encoder_learning_rate
        self.set_up_training(
            seed=seed,
            max_steps=resolved.max_steps,
            steps_per_epoch=steps_per_epoch,
            default_steps_per_epoch=PRESETS[preset]["steps_per_epoch"],
            checkpoint=checkpoint,
            optimizer=optimizer,
            learning_rate=resolved.learning_rate,
            lr_schedule="constant",
            least_steps=2,
            films_in_memory=films_in_memory,
            published_batch=64 if preset == "paper" else None,
            **(_ADAM if optimizer == "adam" else {}),
        )
        for wrong, message in (
            (resolved.critic_steps < 1, f"critic_steps must be 1 or more, not {resolved.critic_steps}."),
            (
                not 0 < resolved.gan_steps < resolved.max_steps,
                f"gan_steps must be 1 or more and leave the encoder some of max_steps={resolved.max_steps}, not be "
                f"{resolved.gan_steps}.",
            ),
            (
                not resolved.encoder_learning_rate > 0,
                f"encoder_learning_rate must be positive, not {resolved.encoder_learning_rate}.",
            ),
        ):
            if wrong:
                raise ValueError(message)
        self.keep_resolved(**vars(resolved))
        with seeded(seed):
            self.model: FAnoGANModel = FAnoGANModel(
                image_size=image_size,
                patch_size=patch_size,
                network=resolved.network,
                width=resolved.width,
                latent_size=latent_size,
                kappa=kappa,
                code_range=code_range,
                tile_score=tile_score,
                horizontal_flips=resolved.horizontal_flips,
            )

    @property
    def stages(self) -> Sequence[Stage]:
        """The game of generator and critic, then the encoder."""
        return Stage("gan", self.gan_steps), Stage("encoder", self.max_steps - self.gan_steps)

    def parameter_groups(self) -> Any:
        """The three players; the encoder has a rate of its own."""
        return [
            {"params": self.model.generator},
            {"params": self.model.critic},
            {"params": self.model.encoder, "lr": self.encoder_learning_rate},
        ]

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """What the players of this stage learn from; the generator sits out all but each few steps."""
        images = cast("Tensor", batch.image)
        if self.stage.name == "encoder":
            return self.model.coding_losses(images, generator)
        plays = takes_turn(self.steps_trained, self.critic_steps)
        return self.model.playing_losses(images, generator, generator_plays=plays)
