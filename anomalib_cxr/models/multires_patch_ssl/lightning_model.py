"""MultiResPatchSSL as an Anomalib module: training glue."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.utils.data import DataLoader

from anomalib_cxr.augmentations.draws import uniform_draws
from anomalib_cxr.augmentations.pose_and_exposure import POSE_DRAWS, pose_and_expose
from anomalib_cxr.callbacks.checkpoint_choice import Checkpoint
from anomalib_cxr.devices import on_device
from anomalib_cxr.imaging.progress import progress
from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.patch_search.local_search import Distance
from anomalib_cxr.models.components.patch_search.reference_bank import BankDtype, Selection
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.weight_layouts import published_backbone
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
        "checkpoint": "best",
        "threshold_rule": "best_f1",
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
        "epochs": 100,
        "steps_per_epoch": 10_000,
        "checkpoint": "last",
        "threshold_rule": "mid_range",
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
        "checkpoint": "best",
        "threshold_rule": "best_f1",
        "learning_rate": 0.6,
        "feature_dim": None,
        "bank_dtype": "float16",
    },
}


class MultiResPatchSSL(BankMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """MultiResPatchSSL: SimCLR on patches of several sizes, nearest-normal search within a patch distance.

    Kim, Moon and Lee, "Unsupervised anomaly detection for posteroanterior chest X-rays using multiresolution
    patch-based self-supervised learning", Sci. Rep. 2023, doi 10.1038/s41598-023-30589-w. One encoder a patch size
    learns from patches of normal images; each patch of a query is scored by its distance to the nearest patch of
    the same size at about the same place of a normal image, and the maps of all sizes are fused.

    Each step reads ``train_batch_size`` images once, and trains every size on ``patches_per_step`` of their patches.
    The paper says "batch 256, 100 epochs": we read both in patches, of each size. An image of 2048² has 256, 64, 16 and
    4 of them, so 1,802 normal images make 180,200, 45,050, 11,262 and 2,816 steps, and 64 images a step are what has
    256 patches of 1024 pixels. Sizes whose encoders have had their epochs rest. Its learning rate of 4.8 is SimCLR's
    for batch 4096 (0.3 · batch / 256); ``preset="laptop"`` takes SimCLR's other rule, 0.075 · √batch, made for small
    batches and few epochs: after 60 steps on PhantomCXR one size's validation AUROC was 0.76 with it and 0.61 with the
    first.

    With ``pre_trained=True`` and ``max_steps=0`` nothing is trained, and the banks hold frozen timm features.

    Args:
        preset: ``"laptop"`` (256² input, patches of W/16 … W/2 at 32 px, ResNet-18, PCA to 64, 60 steps; ours),
            ``"paper"`` (2048², ResNet-50, 100 epochs of 256 patches a step, the last weights, and abnormal above half
            the range of the validation scores), or ``"best"`` (ours: what ranks ZhangLab's validation images best;
            nothing is trained). ``"best"`` differs from the paper in all of this: frozen ImageNet
            features of EfficientNet-lite0 instead of SimCLR, the cells of the last feature map but one of the whole
            image at 256² instead of cut-out patches, one size of 32 px, whitened cosine instead of Mahalanobis
            distance, and the mean of the whole map as score instead of its highest pixel. The arguments whose default
            is None override it.
        image_size: Side of the square model input in pixels.
        patch_sizes: Patch sides in pixels of the model's input. A size may come again where ``backbone`` lists one for
            each: ``patch_sizes=[32, 32], backbone=[…, …]`` averages the standardised maps of two encoders (ours).
        strides: Stride of each size, or one for all; None takes the size itself.
        backbone: timm model, or one for each size; None takes the one that ``weights_path`` is published for, or the
            preset's.
        pre_trained: Start from timm's weights; None as the preset says, otherwise not.
        weights_path: Local weights file for the encoders, or one for each size, as timm, DINOv2 or ``transformers``
            (RAD-DINO), OpenAI's CLIP (CheXzero) or TorchXRayVision name their weights.
        mean: Mean that the weights were trained with, in the units of ``input_range``, or one for each size; None as
            the weights' layout says, otherwise as timm knows.
        std: Its standard deviation; None likewise.
        input_range: What black and white are for the weights, or such a pair for each size; None as the layout says,
            otherwise 0 and 1.
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
        bank_views: How many more times each training image enters the banks, each time in another random pose and
            exposure, see :func:`~anomalib_cxr.augmentations.pose_and_exposure.pose_and_expose` (ours): a film that lies
            or is exposed a little otherwise then finds its like. The banks grow as often; whitening and principal axes
            are fitted to all of them, and the statistics of the maps to the images as they are.
        view_strength: How far these poses and exposures go.
        epochs: How often the encoder of each size sees each of its patches, which makes its number of steps, rounded;
            above 0, it stands in place of ``max_steps``. 0 counts ``max_steps`` for all sizes.
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
        warmup_steps: Linear warm-up of the learning rate, before its cosine decay; None takes a tenth of the steps.
        checkpoint: ``"best"`` by AUROC on the labelled validation split, or ``"last"`` (paper, which tells of no
            choice).
        seed: Seed of weights, order, views and choices.
        max_bank_gib: Refuse to build banks larger than this many GiB; None sets no limit.
        films_in_memory: Keep the training films in memory at the model's size, on the device; the numbers are the same.
            None does so where it pays and fits.
        pre_processor: As in Anomalib; the default resizes to ``image_size``.
        post_processor: As in Anomalib; the default keeps ranks, and decides as the preset says.
        evaluator: As in Anomalib; the default adds AUROC on validation.
        visualizer: As in Anomalib.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    map_description = "distance of each patch to the nearest of normal training images at about its place, fused"

    def __init__(
        self,
        preset: Literal["laptop", "paper", "best"] = "laptop",
        image_size: int | None = None,
        patch_sizes: Sequence[int] | None = None,
        strides: int | Sequence[int] | None = None,
        backbone: str | Sequence[str] | None = None,
        pre_trained: bool | None = None,
        weights_path: str | Sequence[str | None] | None = None,
        mean: float | Sequence[float | None] | None = None,
        std: float | Sequence[float | None] | None = None,
        input_range: Sequence[float] | Sequence[Sequence[float] | None] | None = None,
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
        bank_views: int = 0,
        view_strength: float = 1.0,
        epochs: float | None = None,
        max_steps: int | None = None,
        steps_per_epoch: int | None = None,
        patches_per_step: int | None = None,
        temperature: float = 0.1,
        same_image_negatives: bool = True,
        learning_rate: float | None = None,
        weight_decay: float = 1e-6,
        optimizer: str = "lars",
        warmup_steps: int | None = None,
        checkpoint: Checkpoint | None = None,
        seed: int = 0,
        max_bank_gib: float | None = None,
        films_in_memory: bool | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if backbone is None and isinstance(weights_path, str):
            backbone = published_backbone(weights_path)
        resolved = resolve_preset(
            PRESETS,
            preset,
            image_size=image_size,
            patch_sizes=patch_sizes,
            backbone=backbone,
            pre_trained=pre_trained,
            encoder_size=encoder_size,
            features=features,
            layers=layers,
            patch_distance=patch_distance,
            distance=distance,
            score=score,
            top_q=top_q,
            bank_dtype=bank_dtype,
            feature_dim=feature_dim,
            # Each stands in place of the other; the preset's counts where neither is given.
            epochs=0 if epochs is None and max_steps is not None else epochs,
            max_steps=max_steps,
            patches_per_step=patches_per_step,
            learning_rate=learning_rate,
            checkpoint=checkpoint,
            threshold_rule=None,
        )
        self.epochs = float(resolved.epochs or 0)
        side, sizes = resolved.image_size, tuple(resolved.patch_sizes)
        if pre_processor is True:
            pre_processor = BankMixin.configure_pre_processor((side, side))
        if post_processor is True:
            post_processor = RankPreservingPostProcessor(threshold_rule=resolved.threshold_rule)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        if self.epochs:
            if max_steps is not None:
                msg = f"epochs={epochs} and max_steps={max_steps} both give a length: leave one out."
                raise ValueError(msg)
            resolved.max_steps = 1  # until the training set is known
        elif resolved.max_steps is None:
            msg = f"preset={preset} counts epochs: with epochs=0 give max_steps."
            raise ValueError(msg)
        self._given = {"steps_per_epoch": steps_per_epoch, "warmup_steps": warmup_steps}
        self._default_steps_per_epoch: int = PRESETS[preset]["steps_per_epoch"]
        self.set_up_training(
            seed=seed,
            max_steps=resolved.max_steps,
            steps_per_epoch=None if self.epochs else steps_per_epoch,
            default_steps_per_epoch=self._default_steps_per_epoch,
            checkpoint=resolved.checkpoint,
            optimizer=optimizer,
            learning_rate=resolved.learning_rate,
            weight_decay=weight_decay,
            decay_all=False,
            warmup_steps=resolved.max_steps // 10 if warmup_steps is None else warmup_steps,
            least_steps=0,
            films_in_memory=films_in_memory,
        )
        self.patches_per_step = resolved.patches_per_step
        self.same_image_negatives = same_image_negatives
        self.bank_views = bank_views
        self.view_strength = view_strength
        self.max_bank_gib = max_bank_gib
        for wrong, message in (
            (self.patches_per_step < 2, f"patches_per_step must be at least 2, not {self.patches_per_step}."),
            (bank_views < 0, f"bank_views must be 0 or more, not {bank_views}."),
            (not 0 <= view_strength < float("inf"), f"view_strength must be 0 or more, not {view_strength}."),
            (self.epochs < 0, f"epochs must be 0 or more, not {epochs}."),
            (
                self.epochs > 0 and shared_encoder,
                "epochs gives the encoder of each size a length of its own, which shared_encoder has not: give "
                "max_steps.",
            ),
            (
                max(sizes, default=1) > side and resolved.features == "crops",
                f"A patch of patch_sizes={sizes} is larger than image_size={side}.",
            ),
            (
                self.max_steps > 0 and resolved.features == "map" and not resolved.pre_trained and weights_path is None,
                "features='map' with untrained encoders has nothing to go by: set pre_trained=True and max_steps=0.",
            ),
        ):
            if wrong:
                raise ValueError(message)
        if self.max_steps == 0 and not resolved.pre_trained and weights_path is None:
            logger.warning(
                "max_steps=0 without pre_trained and weights_path leaves the encoders of MultiResPatchSSL random: set "
                "pre_trained=True or weights_path, or train them."
            )
        self.views = SimCLRViews()
        self.loss = NTXentLoss(temperature)
        reach = resolved.patch_distance
        reaches: list[Any] = ["all" if d < 0 else d for d in ([reach] if isinstance(reach, int) else reach)]
        with seeded(seed):
            self.model: MultiResPatchSSLModel = MultiResPatchSSLModel(
                patch_sizes=sizes,
                strides=strides,
                backbone=resolved.backbone,
                pre_trained=bool(resolved.pre_trained),
                weights_path=weights_path,
                shared_encoder=shared_encoder,
                encoder_size=resolved.encoder_size or None,
                features=resolved.features,
                layers=resolved.layers,
                patch_distance=reaches[0] if len(reaches) == 1 else reaches,
                distance=resolved.distance,
                weights=(1.0,) * len(sizes) if weights is None and preset == "laptop" else weights,
                score=resolved.score,
                top_q=resolved.top_q,
                bank_dtype=resolved.bank_dtype,
                feature_dim=resolved.feature_dim or None,
                max_references=max_references,
                selection=selection,
                seed=seed,
                mean=mean,
                std=std,
                input_range=input_range,
                image_size=(side, side),
            )
        # 0 stands for "no resizing" and "all features"; None would ask the preset.
        no_preset = {"encoder_size": resolved.encoder_size or 0, "feature_dim": resolved.feature_dim or 0}
        self.keep_resolved(**vars(resolved) | no_preset | {"epochs": self.epochs}, weights=self.model.weights)
        if self.epochs:  # steps follow from the training set, here and wherever the checkpoint is loaded
            self.keep_resolved(max_steps=None, **self._given)

    # ------------------------------------------------------------------ a length for each size

    def steps_of_sizes(self, images: int, processes: int = 1) -> tuple[int, ...]:
        """Optimiser steps that each size is trained for.

        Args:
            images: Normal training images.
            processes: How many draw patches for the same step, or how many batches are accumulated in one.

        Returns:
            For each patch size ``epochs`` times all its patches by those of a step, rounded, at least 1.
        """
        if not self.epochs:
            return (self.max_steps,) * len(self.model.patch_sizes)
        grids = [self.model.grid(size, self._grid_size()) for size in range(len(self.model.patch_sizes))]
        step = self.patches_per_step * processes
        return tuple(max(1, round(self.epochs * images * grid.rows * grid.cols / step)) for grid in grids)

    def _grid_size(self) -> tuple[int, int]:
        size = self.input_size
        if size is None:
            msg = (
                "MultiResPatchSSL needs a pre-processor with a Resize to a fixed size: patches have a place in a grid."
            )
            raise ValueError(msg)
        return size[0], size[1]

    def setup(self, stage: str) -> None:
        """Take the length from the training set, where it is given in epochs."""
        super().setup(stage)
        if stage == TrainerFn.FITTING and self.epochs:
            in_parallel = self.trainer.world_size * self.trainer.accumulate_grad_batches
            self._steps = self.steps_of_sizes(len(self.datamodule.train_data), in_parallel)
            self.set_length(max(self._steps), self._given["steps_per_epoch"], self._default_steps_per_epoch)
            lengths = (f"{steps} of {side}" for side, steps in zip(self.model.patch_sizes, self._steps, strict=True))
            logger.info(
                "%g epochs of patches are so many steps of so many pixels: %s.", self.epochs, ", ".join(lengths)
            )

    def on_fit_start(self) -> None:
        """Warn of steps with fewer patches than asked for."""
        super().on_fit_start()
        images = self.datamodule.train_batch_size
        for size, side in enumerate(self.model.patch_sizes if self.max_steps else ()):
            grid = self.model.grid(size, self._grid_size())
            if images * grid.rows * grid.cols < self.patches_per_step:
                logger.warning(
                    "A step trains %d patches of %d pixels and not patches_per_step=%d, for train_batch_size=%d images "
                    "have no more: %d images would.",
                    images * grid.rows * grid.cols,
                    side,
                    self.patches_per_step,
                    images,
                    -(-self.patches_per_step // (grid.rows * grid.cols)),
                )

    def parameter_groups(self) -> Any:
        """The network, or a group of each size, where each has a length of its own."""
        if not self.epochs:
            return self.model
        warmup = self._given["warmup_steps"]
        return [
            {"params": module, "max_steps": steps, "warmup_steps": steps // 10 if warmup is None else warmup}
            for module, steps in zip(self._trained_modules(), self._steps, strict=True)
        ]

    def _trained_modules(self) -> list[nn.Module]:
        """Encoder and projection head of each size."""
        return [nn.ModuleList(pair) for pair in zip(self.model.encoders, self.model.heads, strict=True)]

    # ------------------------------------------------------------------ the step

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Contrast patches of every size."""
        images = grey(cast("torch.Tensor", batch.image))
        losses = {}
        for size, name in enumerate(self.model.map_names):
            term = name.replace(" px", "")
            if self.epochs and self.steps_trained >= self._steps[size]:
                if self.trainer.world_size > 1:  # where every parameter must have a gradient; the rate is 0
                    resting = self._trained_modules()[size].parameters()
                    losses[term] = 0.0 * torch.stack([values.sum() for values in resting]).sum()
                continue
            patches, owners = self._sample_patches(images, size, generator)
            first, second = self.views(patches, generator)
            projections = self.model.embed(torch.cat([first, second]), size)
            image_index = None if self.same_image_negatives else owners
            losses[term] = self.loss(*projections.chunk(2), image_index=image_index)
        return losses

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
        return patches[on_device(order, patches.device)], on_device(owners, patches.device)

    def build_bank(self, loader: DataLoader) -> None:
        """Collect the features of the training images and fit banks and statistics."""
        size = self._grid_size()
        n_images = len(self.datamodule.train_data)
        looks = 1 + self.bank_views
        expected = sum(self.model.expected_bank_bytes(looks * n_images, size)) / 2**30
        logger.info("The banks of %d images will take %.2f GiB.", n_images, expected)
        if self.max_bank_gib is not None and expected > self.max_bank_gib:
            msg = (
                f"The banks would take {expected:.2f} GiB, above max_bank_gib={self.max_bank_gib}: "
                "set feature_dim, max_references or bank_dtype=float16, or raise the limit."
            )
            raise ValueError(msg)
        # Each image has its own numbers, whichever process looks at it.
        poses = self._poses(n_images)[self.global_rank :: self.trainer.world_size]
        parts: list[list[list[torch.Tensor]]] = [[[] for _ in range(looks)] for _ in self.model.patch_sizes]
        seen = 0
        for images in progress(self.pre_processed(loader), "Reference bank", len(loader), unit="batch"):
            for look, shown in enumerate(self._looks(images, poses[seen : seen + len(images)])):
                for index, features in enumerate(self.model.features(shown)):
                    parts[index][look].append(features)
            seen += len(images)
        # Each list goes as soon as it is joined: all of them twice would not fit where the banks just do.
        joined = [
            torch.cat([self.gather_references(torch.cat(one.pop(0))) for _ in range(looks)])
            for one in (parts.pop(0) for _ in self.model.patch_sizes)
        ]
        self.model.fit(joined, torch.arange(n_images).repeat(looks), as_they_are=n_images)

    def extend_bank(self, images: torch.Tensor) -> None:
        """Add normal images of another place to the banks, each in as many poses and exposures as the training's."""
        with torch.no_grad():
            for shown in self._looks(images, self._poses(len(images))):
                self.model.extend(self.model.features(shown))

    def _poses(self, images: int) -> torch.Tensor:
        """Numbers in [0, 1) that :meth:`_looks` goes by, (images, bank_views, POSE_DRAWS)."""
        generator = torch.Generator().manual_seed(self.seed)
        numbers = uniform_draws(images, self.bank_views * POSE_DRAWS, generator)
        return numbers.view(images, self.bank_views, POSE_DRAWS)

    def _looks(self, images: torch.Tensor, poses: torch.Tensor) -> Iterator[torch.Tensor]:
        """Images as they are, and then in each of their other poses and exposures, (n, C, H, W) each."""
        yield images
        for view in range(self.bank_views):
            yield pose_and_expose(images, poses[:, view], self.view_strength)
