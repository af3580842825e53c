"""AutoEncoder as an Anomalib module: training glue."""

import logging
from typing import Any, Literal, cast

import torch
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_cxr.callbacks.checkpoint_choice import Checkpoint
from anomalib_cxr.checks import check_choice
from anomalib_cxr.models.auto_encoder.torch_model import AutoEncoderModel, Network, Score, Variant
from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.reconstruction.convolutional import check_side
from anomalib_cxr.models.components.reconstruction.errors import ErrorName, PerceptualError
from anomalib_cxr.models.components.reconstruction.scoring import Relative
from anomalib_cxr.models.components.stages import Stage
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.step_training import Schedule

logger = logging.getLogger(__name__)

_SMALL: dict[str, Any] = {
    "latent_size": 4, "hidden_size": 1024, "relative_map": "standardised", "top_q": 0.02, "lr_schedule": "cosine",
}  # fmt: skip
_PUBLISHED: dict[str, Any] = {
    "latent_size": 16, "hidden_size": 1024, "relative_map": "none", "top_q": 1.0, "lr_schedule": "constant",
}  # fmt: skip
_NO_CODE: dict[str, Any] = {"latent_size": None, "hidden_size": None}

#: What ``preset`` sets for each network; an argument given by the user wins. "paper" is the setting of the network's
#: own source, the others are ours.
PRESETS: dict[Network, dict[str, dict[str, Any]]] = {
    "conv": {
        "laptop": _SMALL | {
            "image_size": 64, "width": 16, "error": "squared", "learning_rate": 1e-3, "weight_decay": 0.0,
            "max_steps": 1000, "steps_per_epoch": 250,
        },
        "paper": _PUBLISHED | {
            "image_size": 64, "width": 16, "error": "squared", "learning_rate": 1e-3, "weight_decay": 0.0,
            "max_steps": 15000, "steps_per_epoch": 1500,
        },
        "best": _PUBLISHED | {
            "image_size": 64, "width": 16, "error": "squared", "learning_rate": 1e-3, "weight_decay": 0.0,
            "relative_map": "ratio", "top_q": 0.1, "max_steps": 1500, "steps_per_epoch": 500,
        },
    },
    "unet": {
        "laptop": _SMALL | _NO_CODE | {
            "image_size": 64, "width": 16, "error": "squared", "learning_rate": 1e-3, "weight_decay": 1e-5,
            "max_steps": 200, "steps_per_epoch": 100,
        },
        "paper": _PUBLISHED | _NO_CODE | {
            "image_size": 128, "width": 64, "error": "squared", "learning_rate": 1e-4, "weight_decay": 1e-5,
            "lr_schedule": "cosine", "max_steps": 67200, "steps_per_epoch": 3200,
        },
    },
    "pix2pixhd": {
        "laptop": _SMALL | {
            "image_size": 64, "width": 8, "hidden_size": 128, "error": "absolute", "learning_rate": 2e-4,
            "weight_decay": 0.0, "max_steps": 300, "steps_per_epoch": 100,
        },
        "paper": _PUBLISHED | {
            "image_size": 256, "width": 64, "hidden_size": 128, "error": "absolute", "learning_rate": 2e-4,
            "weight_decay": 0.0, "lr_schedule": "cosine", "max_steps": 100000, "steps_per_epoch": 5000,
        },
    },
}  # fmt: skip
#: What the sources give Adam besides.
_ADAM: dict[Network, dict[str, Any]] = {"conv": {}, "unet": {"amsgrad": True}, "pix2pixhd": {"betas": (0.5, 0.999)}}
#: Films whose errors tell what is normal, at most.
_NORMAL_FILMS = 500
_MAPS = {
    "none": "error of the reconstruction",
    "difference": "error of the reconstruction, over that of normal training images",
    "standardised": "error of the reconstruction, in standard deviations of normal training images",
    "ratio": "error of the reconstruction, in mean errors of normal training images",
}


class AutoEncoder(BankMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """AutoEncoder: reconstruct normal images through a narrow code, and score by what is lost.

    Cai et al., "MedIAnomaly" (Medical Image Analysis 2025, arXiv 2404.04518), for ``preset="paper"`` and most variants;
    denoising after Kascenas et al. (MIDL 2022), networks of pix2pixHD (Wang et al., CVPR 2018) as in Kim et al. (Sci.
    Rep. 2023). The batch size is the datamodule's ``train_batch_size`` (64 as published).

    Args:
        preset: ``"laptop"`` (ours: 64², a code of 4 numbers, a standardised map), ``"paper"`` (the published setting
            of the network: for ``conv`` 64², a code of 16 numbers, 250 epochs of 3,851 films) or, for ``conv`` alone,
            ``"best"`` (ours: what ranks ZhangLab's validation images best). The arguments whose default is None
            override it.
        image_size: Side of the square model input in pixels, a multiple of 16 from 32 on.
        max_steps: Optimiser steps of the whole training.
        steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None takes the preset's,
            made to divide.
        variant: ``"ae"``; ``"dae"`` undoes coarse noise; ``"vae"`` draws its code from a Gaussian; ``"memory"`` mixes
            its code of learnt ones; ``"context"`` fills in an erased square; ``"spatial"`` has a code in each cell.
        network: ``"conv"``, ``"unet"`` (for ``dae`` alone, and its default) or ``"pix2pixhd"``.
        error: What is trained on and what the map is of: ``"squared"``, ``"absolute"``, ``"ssim"``, ``"perceptual"``
            (features of a frozen encoder) or ``"uncertainty"`` (squared, over the variance that is expected there).
        score: ``"error"``, the mean of the map; or for ``vae`` ``"code_norm"``, the Euclidean norm of the code. The map
            is the error's all the same. Neither direction of the norm is guaranteed: a dull image may lie nearer to 0.
        latent_size: Numbers of the code; few (4 to 16) detect more than many.
        width: Channels of the first layer.
        hidden_size: Units of the layer between features and code.
        relative_map: ``"none"``, or errors relative to normal ones at the same place (ours): the ``"difference"``,
            ``"standardised"`` by the deviation of normal ones, or its ``"ratio"`` to the mean normal one.
        top_q: Share of the highest pixels that the score averages (ours below 1, as published all of them).
        kl_weight: For ``vae``: weight of the divergence; None takes 0.005.
        memory_slots: For ``memory``: learnt codes; None takes 25.
        noise: For ``dae``: standard deviation of the noise, for images in [0, 1]; None takes 0.2.
        backbone: For ``perceptual``: any timm model.
        pre_trained: Take timm's weights for it.
        weights_path: Local weights file for it.
        layer: Level of it, 0 the finest.
        optimizer: Any optimiser name of timm. The published one is Adam, ``unet``'s with AMSGrad and ``pix2pixhd``'s
            with a first moment of 0.5, which go with ``"adam"`` alone.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay.
        lr_schedule: ``"cosine"`` to zero over ``max_steps``, or ``"constant"``.
        warmup_steps: Linear warm-up of the learning rate.
        checkpoint: ``"last"`` (as published), or ``"best"`` by AUROC on the labelled validation split.
        seed: Seed of weights, order and all that is drawn.
        films_in_memory: Keep the training films in memory at the model's size, on the device; the numbers are the same.
            None does so where it pays and fits.
        pre_processor: As in Anomalib; the default resizes to ``image_size``.
        post_processor: As in Anomalib; the default keeps ranks.
        evaluator: As in Anomalib; the default adds AUROC on validation.
        visualizer: As in Anomalib.

    Raises:
        ValueError: If an argument is out of range, or some do not go together; the message names them.
    """

    def __init__(
        self,
        preset: Literal["laptop", "paper", "best"] = "laptop",
        image_size: int | None = None,
        max_steps: int | None = None,
        steps_per_epoch: int | None = None,
        variant: Variant = "ae",
        network: Network | None = None,
        error: ErrorName | None = None,
        score: Score = "error",
        latent_size: int | None = None,
        width: int | None = None,
        hidden_size: int | None = None,
        relative_map: Relative | None = None,
        top_q: float | None = None,
        kl_weight: float | None = None,
        memory_slots: int | None = None,
        noise: float | None = None,
        backbone: str = "tf_efficientnet_lite0",
        pre_trained: bool = True,
        weights_path: str | None = None,
        layer: int = 2,
        optimizer: str = "adam",
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        lr_schedule: Schedule | None = None,
        warmup_steps: int = 0,
        checkpoint: Checkpoint = "last",
        seed: int = 0,
        films_in_memory: bool | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        check_choice("variant", variant, Variant)
        network = network or ("unet" if variant == "dae" else "conv")
        check_choice("network", network, Network)
        resolved = resolve_preset(
            PRESETS[network],
            preset,
            image_size=image_size,
            max_steps=max_steps,
            error=error,
            latent_size=latent_size,
            width=width,
            hidden_size=hidden_size,
            relative_map=relative_map,
            top_q=top_q,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
        )
        check_side(resolved.image_size)
        if pre_processor is True:
            pre_processor = BankMixin.configure_pre_processor((resolved.image_size, resolved.image_size))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.variant = variant
        self.network_name = network
        self.set_up_training(
            seed=seed,
            max_steps=resolved.max_steps,
            steps_per_epoch=steps_per_epoch,
            default_steps_per_epoch=PRESETS[network][preset]["steps_per_epoch"],
            checkpoint=checkpoint,
            optimizer=optimizer,
            learning_rate=resolved.learning_rate,
            weight_decay=resolved.weight_decay,
            lr_schedule=resolved.lr_schedule,
            warmup_steps=warmup_steps,
            films_in_memory=films_in_memory,
            published_batch=64 if preset == "paper" and network == "conv" else None,
            **(_ADAM[network] if optimizer == "adam" else {}),
        )
        self.keep_resolved(**vars(resolved), network=network)
        with seeded(seed):
            self.model: AutoEncoderModel = AutoEncoderModel(
                image_size=resolved.image_size,
                variant=variant,
                network=network,
                width=resolved.width,
                hidden_size=resolved.hidden_size,
                latent_size=resolved.latent_size,
                error=resolved.error,
                score=score,
                relative_map=resolved.relative_map,
                top_q=resolved.top_q,
                kl_weight=kl_weight,
                memory_slots=memory_slots,
                noise=noise,
                backbone=backbone,
                pre_trained=pre_trained,
                weights_path=weights_path,
                layer=layer,
            )
        self.map_description = _MAPS[resolved.relative_map]

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Length and validation interval; the denoiser's gradients are clipped, as published."""
        clipped = {"gradient_clip_val": 0.5} if self.network_name == "unet" else {}
        return super().trainer_arguments | clipped

    def parameter_groups(self) -> Any:
        """The network; an encoder that errors are seen by is not trained."""
        return self.model.network

    def on_stage_start(self, stage: Stage) -> None:
        """Take the statistics of the features that errors are seen by."""
        super().on_stage_start(stage)
        if isinstance(self.model.error, PerceptualError):
            with torch.no_grad():
                films = self.pre_processed(self.normal_films())
                moments = [self.model.moments(images) for images in films]
            self.model.error.fit(self.gather_references(torch.cat(moments)))

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Error of the reconstruction, and what the code is asked for."""
        images = cast("Tensor", batch.image)
        if len(images) < 2:
            msg = (
                "AutoEncoder normalises over the images of a batch: set the datamodule's train_batch_size to 2 or more."
            )
            raise ValueError(msg)
        return self.model.losses(images, generator)

    def build_bank(self, loader: DataLoader) -> None:
        """Take the errors of the normal films, where maps are relative to them, and look at a VAE's codes."""
        if self.model.scoring.normal_map is None and self.variant != "vae":
            return
        apart, seen = -(-len(self.datamodule.train_data) // _NORMAL_FILMS), 0
        errors, codes = [], []
        for images in self.pre_processed(loader):
            part = images[-seen % apart :: apart]
            seen += len(images)
            if len(part):
                error, code = self.model.errors(part)
                errors.append(error)
                codes.append(code)
        self.model.fit(self.gather_references(torch.cat(errors)))
        if self.variant == "vae":
            self._look_at_codes(self.gather_references(torch.cat(cast("list[Tensor]", codes))))

    def _look_at_codes(self, codes: Tensor) -> None:
        """Warn of a code that says nothing: its mean is the same for all films (active units, Burda et al. 2016)."""
        active = int((codes.var(dim=0) > 0.01).sum())
        if 2 * active < codes.shape[1]:
            logger.warning(
                "%d of the code's %d numbers differ from film to film (variance above 0.01): lower kl_weight.",
                active,
                codes.shape[1],
            )
