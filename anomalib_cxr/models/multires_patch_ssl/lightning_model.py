"""MultiResPatchSSL as an Anomalib module: training glue."""

import logging
from collections.abc import Sequence
from typing import Any, Literal, cast

import timm.optim
import torch
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRSchedulerConfig
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from anomalib_cxr.models.components.one_class import OneClassTraining
from anomalib_cxr.models.components.patch_search.local_search import Distance
from anomalib_cxr.models.components.patch_search.reference_bank import BankDtype, Selection
from anomalib_cxr.models.components.schedule import validation_interval, warmup_cosine
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.multires_patch_ssl.ntx_ent_loss import NTXentLoss
from anomalib_cxr.models.multires_patch_ssl.torch_model import Features, MultiResPatchSSLModel, Score, grey
from anomalib_cxr.models.multires_patch_ssl.views import SimCLRViews

logger = logging.getLogger(__name__)

_PUBLISHED: dict[str, Any] = {
    "pre_trained": False,
    "features": "crops",
    "layers": (-2, -1),
    "patch_distance": 1,
    "distance": "mahalanobis",
    "score": "max",
    "top_q": 0.25,
}
#: What ``preset`` sets; an argument given by the user wins. "paper" is Kim et al.'s setting, the others are ours.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        **_PUBLISHED,
        "image_size": 256,
        "patch_sizes": (16, 32, 64, 128),
        "encoder_size": 32,
        "backbone": "resnet18",
        "patches_per_step": 64,
        "max_steps": 60,
        "steps_per_epoch": 60,
        "learning_rate": 0.075 * 64**0.5,
        "feature_dim": 64,
        "bank_dtype": "float16",
    },
    "paper": {
        **_PUBLISHED,
        "image_size": 2048,
        "patch_sizes": (128, 256, 512, 1024),
        "encoder_size": None,
        "backbone": "resnet50",
        "patches_per_step": 256,
        "max_steps": 100_000,
        "steps_per_epoch": 10_000,
        "learning_rate": 4.8,
        "feature_dim": None,
        "bank_dtype": "float32",
    },
    "best": {
        "pre_trained": True,
        "features": "map",
        "layers": (-2,),
        "patch_distance": 1,
        "distance": "whitened_cosine",
        "score": "top_q",
        "top_q": 1.0,
        "image_size": 256,
        "patch_sizes": (32,),
        "encoder_size": None,
        "backbone": "tf_efficientnet_lite0",
        "patches_per_step": 64,
        "max_steps": 0,
        "steps_per_epoch": 1,
        "learning_rate": 0.6,
        "feature_dim": None,
        "bank_dtype": "float16",
    },
}


class MultiResPatchSSL(OneClassTraining, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """MultiResPatchSSL: SimCLR on patches of several sizes, nearest-normal search within a patch distance.

    Kim, Moon and Lee, "Multiresolution patch-based self-supervised anomaly detection on chest X-rays", Sci. Rep. 2023,
    doi 10.1038/s41598-023-30589-w. One encoder a patch size learns from patches of normal images; each patch of a query
    is scored by its distance to the nearest patch of the same size at about the same place of a normal image, and the
    maps of all sizes are fused.

    Each step reads ``train_batch_size`` images once, and trains every size on ``patches_per_step`` of their patches.
    The paper says "batch 256, 100 epochs": we read the batch as patches, a step of each size. Its learning rate of 4.8
    is SimCLR's for batch 4096 (0.3 · batch / 256); ``preset="laptop"`` takes SimCLR's other rule, 0.075 · √batch, made
    for small batches and few epochs: after 60 steps on PhantomCXR one size's validation AUROC was 0.76 with it and 0.61
    with the first.

    With ``pre_trained=True`` and ``max_steps=0`` nothing is trained, and the banks hold frozen timm features.

    Args:
        preset: ``"laptop"`` (256² input, patches of W/16 … W/2 at 32 px, ResNet-18, PCA to 64, 60 steps; ours),
            ``"paper"`` (2048², ResNet-50, 256 patches a step), or ``"best"`` (ours: what ranks ZhangLab's validation
            images best; nothing is trained). ``"best"`` differs from the paper in all of this: frozen ImageNet
            features of EfficientNet-lite0 instead of SimCLR, the cells of the last feature map but one of the whole
            image at 256² instead of cut-out patches, one size of 32 px, whitened cosine instead of Mahalanobis
            distance, and the mean of the whole map as score instead of its highest pixel. The arguments whose default
            is None override it.
        image_size: Side of the square model input in pixels.
        patch_sizes: Patch sides in pixels of the model's input.
        strides: Stride of each size, or one for all; None takes the size itself.
        backbone: timm model.
        pre_trained: Start from timm's weights; None as the preset says, otherwise not.
        weights_path: Local weights file for the encoders.
        shared_encoder: One encoder for all sizes (ours).
        encoder_size: Side to which patches are resized before the encoder; 0 takes them as cut.
        features: ``"crops"`` (paper) or ``"map"`` (ours): cells of one whole-image feature map.
        layers: Levels of the feature map for ``"map"``; None as the preset says, otherwise the last two.
        patch_distance: Patch distance d, one for all sizes or one each; -1 searches the whole grid.
        distance: ``"euclidean"``, ``"manhattan"``, ``"cosine"`` or ``"mahalanobis"`` (paper), or ``"whitened_cosine"``
            (ours), best on frozen ImageNet features.
        weights: Weight of each size's map; None takes equal ones with ``preset="laptop"``, otherwise the paper's for
            four sizes.
        score: Image score: ``"max"``, the highest pixel (paper), or ``"top_q"``, the mean of the highest (ours).
        top_q: Share of pixels that ``"top_q"`` averages.
        bank_dtype: Number format of the banks.
        feature_dim: Length to which PCA shortens features; 0 keeps all.
        max_references: References kept for each cell; None keeps all.
        selection: How they are chosen.
        max_steps: Optimiser steps; 0 trains nothing.
        steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None takes the preset's,
            made to divide.
        patches_per_step: Patches of each size in a step and process.
        temperature: Of NT-Xent; SimCLR's best (its Table 5), the paper gives none.
        same_image_negatives: Whether patches of one image are negatives of each other. They may overlap and show the
            same anatomy, but without them SimCLR never learns to tell neighbours apart; the paper does not say.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay.
        optimizer: Any optimiser name of timm; the paper's is LARS.
        warmup_steps: Linear warm-up of the learning rate, before its cosine decay; None takes a tenth of ``max_steps``.
        checkpoint: ``"best"`` by AUROC on the labelled validation split, or ``"last"``.
        seed: Seed of weights, order, views and choices.
        max_bank_gib: Refuse to build banks larger than this many GiB; None sets no limit.
        pre_processor: As in Anomalib; the default resizes to ``image_size``.
        post_processor: As in Anomalib; the default keeps ranks.
        evaluator: As in Anomalib; the default adds AUROC on validation.
        visualizer: As in Anomalib.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(
        self,
        preset: Literal["laptop", "paper", "best"] = "laptop",
        image_size: int | None = None,
        patch_sizes: Sequence[int] | None = None,
        strides: int | Sequence[int] | None = None,
        backbone: str | None = None,
        pre_trained: bool | None = None,
        weights_path: str | None = None,
        shared_encoder: bool = False,
        encoder_size: int | None = None,
        features: Features | None = None,
        layers: Sequence[int] | None = None,
        patch_distance: int | Sequence[int] | None = None,
        distance: Distance | None = None,
        weights: Sequence[float] | None = None,
        score: Score | None = None,
        top_q: float | None = None,
        bank_dtype: BankDtype | None = None,
        feature_dim: int | None = None,
        max_references: int | None = None,
        selection: Selection = "random",
        max_steps: int | None = None,
        steps_per_epoch: int | None = None,
        patches_per_step: int | None = None,
        temperature: float = 0.1,
        same_image_negatives: bool = True,
        learning_rate: float | None = None,
        weight_decay: float = 1e-6,
        optimizer: str = "lars",
        warmup_steps: int | None = None,
        checkpoint: Literal["best", "last"] = "best",
        seed: int = 0,
        max_bank_gib: float | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if preset not in PRESETS:
            msg = f"preset must be one of {sorted(PRESETS)}, not {preset!r}."
            raise ValueError(msg)

        def chosen(name: str, value: Any) -> Any:
            return PRESETS[preset][name] if value is None else value

        side, sizes = chosen("image_size", image_size), tuple(chosen("patch_sizes", patch_sizes))
        if pre_processor is True:
            pre_processor = OneClassTraining.configure_pre_processor((side, side))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        features, pre_trained = chosen("features", features), chosen("pre_trained", pre_trained)
        patch_distance = chosen("patch_distance", patch_distance)
        self.max_steps = chosen("max_steps", max_steps)
        self.steps_per_epoch = validation_interval(self.max_steps, steps_per_epoch, PRESETS[preset]["steps_per_epoch"])
        self.patches_per_step = chosen("patches_per_step", patches_per_step)
        self.learning_rate = chosen("learning_rate", learning_rate)
        self.weight_decay = weight_decay
        self.optimizer_name = optimizer
        self.warmup_steps = self.max_steps // 10 if warmup_steps is None else warmup_steps
        self.same_image_negatives = same_image_negatives
        self.checkpoint = checkpoint
        self.seed = seed
        self.max_bank_gib = max_bank_gib
        for wrong, message in (
            (self.max_steps < 0, f"max_steps must be 0 or more, not {self.max_steps}."),
            (self.patches_per_step < 2, f"patches_per_step must be at least 2, not {self.patches_per_step}."),
            (self.learning_rate <= 0, f"learning_rate must be positive, not {self.learning_rate}."),
            (checkpoint not in {"best", "last"}, f"checkpoint must be 'best' or 'last', not {checkpoint!r}."),
            (
                max(sizes, default=1) > side and features == "crops",
                f"A patch of patch_sizes={sizes} is larger than image_size={side}.",
            ),
            (
                self.max_steps > 0 and features == "map" and not pre_trained and weights_path is None,
                "features='map' with untrained encoders has nothing to go by: set pre_trained=True and max_steps=0.",
            ),
        ):
            if wrong:
                raise ValueError(message)
        if self.max_steps == 0 and not pre_trained and weights_path is None:
            logger.warning(
                "max_steps=0 without pre_trained and weights_path leaves the encoders of MultiResPatchSSL random: set "
                "pre_trained=True or weights_path, or train them."
            )
        self.views = SimCLRViews()
        self.loss = NTXentLoss(temperature)
        reach: list[int] = [patch_distance] if isinstance(patch_distance, int) else list(cast("Any", patch_distance))
        reaches: list[Any] = ["all" if d < 0 else d for d in reach]
        with seeded(seed):
            self.model: MultiResPatchSSLModel = MultiResPatchSSLModel(
                patch_sizes=sizes,
                strides=strides,
                backbone=chosen("backbone", backbone),
                pre_trained=bool(pre_trained),
                weights_path=weights_path,
                shared_encoder=shared_encoder,
                encoder_size=chosen("encoder_size", encoder_size) or None,
                features=cast("Features", features),
                layers=chosen("layers", layers),
                patch_distance=reaches[0] if len(reaches) == 1 else reaches,
                distance=chosen("distance", distance),
                weights=(1.0,) * len(sizes) if weights is None and preset == "laptop" else weights,
                score=chosen("score", score),
                top_q=chosen("top_q", top_q),
                bank_dtype=chosen("bank_dtype", bank_dtype),
                feature_dim=chosen("feature_dim", feature_dim) or None,
                max_references=max_references,
                selection=selection,
                seed=seed,
            )

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Length and validation interval; one idle step where nothing is to be trained."""
        return super().trainer_arguments | {"max_steps": max(1, self.max_steps)}

    def training_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Contrast patches of every size."""
        del args, kwargs
        if self.max_steps == 0:
            # An idle step. Lightning lets one process skip it, which a gradient scaler wants; several need a loss, and
            # that of no parameter moves none.
            return None if self.trainer.world_size == 1 else torch.zeros((), device=self.device, requires_grad=True)
        images = grey(cast("torch.Tensor", batch.image))
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
        total = images.new_zeros(())
        for size, side in enumerate(self.model.patch_sizes):
            patches, owners = self._sample_patches(images, size, generator)
            first, second = self.views(patches, generator)
            projections = self.model.embed(torch.cat([first, second]), size)
            loss = self.loss(*projections.chunk(2), image_index=None if self.same_image_negatives else owners)
            if not torch.isfinite(loss):
                step = self.trainer.global_step
                msg = f"The loss of size {side} is {loss.item()} at step {step}: lower learning_rate or warm up longer."
                raise RuntimeError(msg)
            self.log(f"train_loss_{side}", loss)
            total = total + loss
        self.log("train_loss", total, prog_bar=True, on_step=True, on_epoch=False)
        return total

    def _sample_patches(
        self, images: torch.Tensor, size: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw ``patches_per_step`` patches of the batch without repeats, or all where there are fewer.

        Returns:
            Patches (n, 1, p, p), and the image each was cut from, (n,), unique over processes.
        """
        grid = self.model.grid(size, (images.shape[-2], images.shape[-1]))
        patches = grid.cut(images).flatten(0, 2)
        order = torch.randperm(len(patches), generator=generator)[: self.patches_per_step]
        owners = order // (grid.rows * grid.cols) + self.global_rank * len(images)
        return patches[order.to(patches.device)], owners.to(patches.device)

    def build_bank(self, loader: DataLoader) -> None:
        """Collect the features of the training images and fit banks and statistics."""
        size = self.input_size
        if size is None:
            msg = (
                "MultiResPatchSSL needs a pre-processor with a Resize to a fixed size: patches have a place in a grid."
            )
            raise ValueError(msg)
        n_images = len(self.datamodule.train_data)
        expected = sum(self.model.expected_bank_bytes(n_images, size)) / 2**30
        logger.info("The banks of %d images will take %.2f GiB.", n_images, expected)
        if self.max_bank_gib is not None and expected > self.max_bank_gib:
            msg = (
                f"The banks would take {expected:.2f} GiB, above max_bank_gib={self.max_bank_gib}: "
                "set feature_dim, max_references or bank_dtype=float16, or raise the limit."
            )
            raise ValueError(msg)
        parts: list[list[torch.Tensor]] = [[] for _ in self.model.patch_sizes]
        for images in tqdm(self.pre_processed(loader), total=len(loader), desc="Reference bank", leave=False):
            for index, features in enumerate(self.model.features(images)):
                parts[index].append(features)
        # Each list goes as soon as it is joined: all of them twice would not fit where the banks just do.
        self.model.fit([self.gather_references(torch.cat(parts.pop(0))) for _ in self.model.patch_sizes])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """LARS (by default) over encoders and heads, linear warm-up and cosine decay by the step."""
        optimizer = timm.optim.create_optimizer_v2(
            self.model, opt=self.optimizer_name, lr=self.learning_rate, weight_decay=self.weight_decay, momentum=0.9
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate_at(self, step: int) -> float:
        """Factor on the learning rate at a step."""
        return warmup_cosine(step, self.warmup_steps, self.max_steps)
