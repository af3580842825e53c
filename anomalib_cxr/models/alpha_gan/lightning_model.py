"""AlphaGAN as an Anomalib module: training glue."""

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
from anomalib_cxr.models.alpha_gan.torch_model import AlphaGANModel, Score
from anomalib_cxr.models.components.adversarial import takes_turn
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.reconstruction.convolutional import check_side
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.step_training import Schedule, StepTrainingMixin

#: What ``preset`` sets; an argument given by the user wins. "paper" has what is known of Nakao et al.'s setting.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "image_size": 64, "width": 16, "score": "error", "max_steps": 400, "steps_per_epoch": 200,
        "learning_rate": 8e-4, "lr_schedule": "cosine",
    },
    "paper": {
        "image_size": 256, "width": 64, "score": "code_norm", "max_steps": 20_000, "steps_per_epoch": 1_000,
        "learning_rate": 8e-4, "lr_schedule": "constant",
    },
}  # fmt: skip
#: Moments in the example of a public replication of α-GAN.
_ADAM: dict[str, Any] = {"betas": (0.5, 0.9)}


class AlphaGAN(StepTrainingMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """AlphaGAN: an autoencoder whose images and whose codes are both judged by a critic.

    Rosca et al., "Variational approaches for auto-encoding generative adversarial networks" (arXiv 1706.04987), scored
    as in Nakao et al., "Unsupervised deep anomaly detection in chest radiographs" (J. Digit. Imaging 34, 2021): normal
    images are coded as if drawn from N(0, 1), and an image is as abnormal as its code is long. Four players: encoder,
    with the generator, reconstructs; both fool a critic of images, the encoder another of codes.
    (The paper's Algorithm 1 has codes from the prior and from the encoder swapped in that critic's loss.)

    The batch size is the datamodule's ``train_batch_size`` (Nakao et al.: 10).

    Args:
        preset: ``"laptop"`` (ours: 64², 400 steps) or ``"paper"`` (Nakao et al.'s code of 128 numbers and batch; input,
            networks, rates and length are not published: 256² and 20,000 steps are ours). The arguments whose default
            is None override it.
        image_size: Side of the square model input in pixels, a multiple of 16 from 32 on.
        width: Channels of the first layer of encoder and critic.
        latent_size: Numbers of the code.
        code_hidden: Units of the code critic's two hidden layers.
        reconstruction_weight: Weight λ of the mean absolute error on [−1, 1].
        score: ``"code_norm"``, the Euclidean norm of the code, or ``"error"``, the mean absolute error. The map is the
            absolute error in both cases. Neither direction of the norm is guaranteed.
        generator_steps: Steps of encoder and generator for each step of the critics.
        max_steps: Optimiser steps of the whole training, those of encoder and generator.
        steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None takes the preset's,
            made to divide.
        optimizer: Any optimiser name of timm; ``"adam"`` has the moments 0.5 and 0.9.
        learning_rate: Peak learning rate of all players.
        lr_schedule: ``"cosine"`` to zero over ``max_steps``, or ``"constant"``.
        checkpoint: ``"last"``, or ``"best"`` by AUROC on the labelled validation split.
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
        image_size: int | None = None,
        width: int | None = None,
        latent_size: int = 128,
        code_hidden: int = 256,
        reconstruction_weight: float = 10.0,
        score: Score | None = None,
        generator_steps: int = 2,
        max_steps: int | None = None,
        steps_per_epoch: int | None = None,
        optimizer: str = "adam",
        learning_rate: float | None = None,
        lr_schedule: Schedule | None = None,
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
            image_size=image_size,
            width=width,
            score=score,
            max_steps=max_steps,
            learning_rate=learning_rate,
            lr_schedule=lr_schedule,
        )
        check_side(resolved.image_size)
        if generator_steps < 1:
            msg = f"generator_steps must be 1 or more, not {generator_steps}."
            raise ValueError(msg)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor((resolved.image_size, resolved.image_size))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.generator_steps = generator_steps
        self.set_up_training(
            seed=seed,
            max_steps=resolved.max_steps,
            steps_per_epoch=steps_per_epoch,
            default_steps_per_epoch=PRESETS[preset]["steps_per_epoch"],
            checkpoint=checkpoint,
            optimizer=optimizer,
            learning_rate=resolved.learning_rate,
            lr_schedule=resolved.lr_schedule,
            films_in_memory=films_in_memory,
            published_batch=10 if preset == "paper" else None,
            **(_ADAM if optimizer == "adam" else {}),
        )
        self.keep_resolved(**vars(resolved))
        with seeded(seed):
            self.model: AlphaGANModel = AlphaGANModel(
                image_size=resolved.image_size,
                width=resolved.width,
                latent_size=latent_size,
                code_hidden=code_hidden,
                reconstruction_weight=reconstruction_weight,
                score=resolved.score,
            )

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """What each player learns from; the critics sit out all but each few steps."""
        return self.model.losses(
            cast("Tensor", batch.image), generator, critics_play=takes_turn(self.steps_trained, self.generator_steps)
        )
