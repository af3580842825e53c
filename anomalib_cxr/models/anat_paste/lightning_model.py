"""AnatPaste as an Anomalib module: training glue."""

from collections.abc import Callable
from typing import Any, Literal, cast

import pandas as pd
import torch
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from anomalib_cxr.anatomy import (
    FunctionPath,
    LungMethod,
    Lungs,
    Region,
    RegionMasks,
    describe_function,
    load_function,
)
from anomalib_cxr.augmentations import PastingVariant, build_pasting, check_images, jitter_checked
from anomalib_cxr.callbacks.checkpoint_choice import Checkpoint
from anomalib_cxr.checks import check_choice
from anomalib_cxr.models.anat_paste.torch_model import AnatPasteModel, Density
from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.region_finding import find_region_masks, listed_region
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.step_training import Schedule
from anomalib_cxr.models.components.training_sheets import save_training_sheets

#: What ``preset`` sets; an argument given by the user wins. "paper" is Sato et al.'s setting, the others are ours.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {"image_size": 128, "max_steps": 250, "steps_per_epoch": 50, "fine_map": True, "density": "kernel"},
    "paper": {
        "image_size": 256, "max_steps": 256 * 256, "steps_per_epoch": 8 * 256, "fine_map": False, "density": "kernel",
    },
    "best": {"image_size": 128, "max_steps": 900, "steps_per_epoch": 150, "fine_map": False, "density": "local"},
}  # fmt: skip


_MAPS: dict[Density, str] = {
    "kernel": "Grad-CAM towards 'pasted', relative to that of normal training images",
    "local": "distance of each feature cell to the nearest of normal training images at about its place",
}


class AnatPaste(BankMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """AnatPaste: learn to see anomalies pasted inside the anatomy, score by density of the embedding.

    Sato et al., "Anatomy-aware self-supervised learning for anomaly detection in chest radiographs" (iScience 2023,
    arXiv 2205.04282). A ResNet-18 tells normal images from the same images with a jittered patch blended into the
    segmented lungs, or into any other region (``region``). At test time a Gaussian kernel density over the embeddings
    of the training normals scores an image; a Grad-CAM towards "pasted" shows where. The CutPaste variants (Li et al.
    2021) train under the same schedule, for comparison.

    The batch size is the datamodule's ``train_batch_size`` (the paper's is 64, so 128 images a step). Values that are
    ours and not the paper's: ``preset="laptop"`` (length and input size for a CPU), the lung segmentation, the
    normalisation of scores, which keeps their ranks, and the pixel threshold.

    Args:
        preset: ``"laptop"`` (128² input, 250 steps, validation every 50; ours), ``"paper"`` (256², 256 × 256 steps,
            validation every 8 × 256, which divides them), or ``"best"`` (ours: what ranks ZhangLab's validation images
            best of all that half an hour of a CPU can train). ``"best"`` differs from the paper in size and length
            (128², 900 steps, validation every 150) and in the density: local distances on the last feature map but
            one, instead of a kernel density of the pooled embedding and a Grad-CAM. After 1200 steps at 256²
            (ZhangLab, one seed) the kernel density ranked better than the local one. ``image_size``, ``max_steps``,
            ``steps_per_epoch``, ``fine_map`` and ``density`` override it.
        image_size: Side of the square model input in pixels.
        max_steps: Optimiser steps of the whole training.
        steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None takes the preset's,
            made to divide.
        variant: Which pasting makes the anomalies.
        segmentation: Paste inside the region; ``False`` is the paper's ablation (anywhere). AnatPaste only.
        blur: Blur the blending mask; ``False`` is the paper's ablation. AnatPaste only.
        lung_method: How the region is found unless another is given: the lungs by ``"shape"`` (ours) or ``"otsu"``
            (the paper's Algorithm 1). Where the datamodule has an image cache, the masks are kept in its folder
            ``lung_masks`` for the next training.
        region: For other organs and modalities (ours): a function that takes an image (H, W) float32 in [0, 1] at the
            size of the model and gives a bool mask (H, W), or the path to import it by, ``"package.module.name"``, or
            ``class_path`` and ``init_args`` of a class whose objects are such functions. None takes the files that the
            datamodule lists as ``region_path`` (``region_dir`` or ``region_column``), or else the lungs.
        color_jitter: Brightness and contrast jitter of the whole image before pasting, ± this share (the published
            code's 0.1).
        backbone: Any timm model that ends in plain average pooling.
        pre_trained: Start from timm's weights; the paper does not.
        head_layers: 512-unit layers of the projection head before its 128.
        density: ``"kernel"``, the paper's, of the pooled embedding; or ``"local"`` (ours), the distance of each cell of
            the last feature map but one to the nearest normal one within a cell of its place, see
            :class:`~anomalib_cxr.models.anat_paste.local_density.LocalDensity`. None: as the preset says.
        bandwidth: Of the kernel density.
        fine_map: Average the heat map over shifts by half a cell: four passes an image instead of one, and a map that
            says more precisely where (ours). None: with ``preset="laptop"`` and a kernel density.
        optimizer: Any optimiser name of timm (``timm.optim.list_optimizers()``). The paper's is ``"momentum"``, SGD
            with classical momentum; timm's ``"sgd"`` is Nesterov's.
        learning_rate: Peak learning rate.
        momentum: For optimisers that have one; 0 is plain gradient descent.
        weight_decay: Weight decay.
        lr_schedule: ``"cosine"`` to zero over ``max_steps``, or ``"constant"``.
        warmup_steps: Linear warm-up of the learning rate.
        checkpoint: ``"best"`` by AUROC on the labelled validation split (the paper's way) or ``"last"``.
        seed: Seed of weights, order and augmentations.
        num_workers: Processes for the region masks; ``None`` takes all cores.
        films_in_memory: Keep the training films in memory at the model's size, on the device; the numbers are the same.
            None does so where it pays and fits.
        pre_processor: As in Anomalib; the default resizes to ``image_size``.
        post_processor: As in Anomalib; the default keeps ranks.
        evaluator: As in Anomalib; the default adds AUROC on validation.
        visualizer: As in Anomalib.

    Raises:
        ValueError: If an argument is out of range; the message names it.

    Examples:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cxr.data import PhantomCXR
        >>> from anomalib_cxr.models import AnatPaste
        >>> Engine().train(model=AnatPaste(), datamodule=PhantomCXR())  # doctest: +SKIP
    """

    _looked_at_pixels = False

    def __init__(
        self,
        preset: Literal["laptop", "paper", "best"] = "laptop",
        image_size: int | None = None,
        max_steps: int | None = None,
        steps_per_epoch: int | None = None,
        variant: PastingVariant = "anatpaste",
        segmentation: bool = True,
        blur: bool = True,
        lung_method: LungMethod = "shape",
        region: FunctionPath | Callable[..., Any] | None = None,
        color_jitter: float = 0.1,
        backbone: str = "resnet18",
        pre_trained: bool = False,
        head_layers: int = 1,
        density: Density | None = None,
        bandwidth: float = 1.0,
        fine_map: bool | None = None,
        optimizer: str = "momentum",
        learning_rate: float = 0.03,
        momentum: float = 0.9,
        weight_decay: float = 3e-5,
        lr_schedule: Schedule = "cosine",
        warmup_steps: int = 0,
        checkpoint: Checkpoint = "best",
        seed: int = 0,
        num_workers: int | None = None,
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
            max_steps=max_steps,
            density=density,
            fine_map=fine_map,
        )
        check_choice("density", resolved.density, Density)
        check_choice("lung_method", lung_method, LungMethod)
        if fine_map is None:
            resolved.fine_map = resolved.fine_map and resolved.density == "kernel"
        if pre_processor is True:
            _require(resolved.image_size >= 32, f"image_size must be at least 32, not {resolved.image_size}.")
            pre_processor = BankMixin.configure_pre_processor((resolved.image_size, resolved.image_size))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.set_up_training(
            seed=seed,
            max_steps=resolved.max_steps,
            steps_per_epoch=steps_per_epoch,
            default_steps_per_epoch=PRESETS[preset]["steps_per_epoch"],
            checkpoint=checkpoint,
            optimizer=optimizer,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
            warmup_steps=warmup_steps,
            films_in_memory=films_in_memory,
            published_batch=64 if preset == "paper" else None,
        )
        self.keep_resolved(**vars(resolved), region=None if region is None else describe_function(region))
        self.map_description = _MAPS[resolved.density]
        _require(0 <= color_jitter < 1, f"color_jitter must lie in [0, 1), not be {color_jitter}.")
        self.lung_method = lung_method
        vars(self)["region"] = region  # a network that finds it is no part of this one
        self.region: FunctionPath | Callable[..., Any] | None
        self.color_jitter = color_jitter
        self.num_workers = num_workers

        switches = {"segmentation": segmentation, "blur": blur} if variant == "anatpaste" else {}
        self.pasting = build_pasting(variant, **switches)
        self.model: AnatPasteModel
        self.needs_region = variant == "anatpaste" and segmentation
        _require(
            region is None or self.needs_region,
            "region is where variant='anatpaste' pastes, with segmentation: leave region out, or take them.",
        )
        self.region_masks: RegionMasks | None = None
        with seeded(seed):
            self.model = AnatPasteModel(
                backbone,
                pre_trained,
                head_layers,
                self.pasting.num_classes,
                bandwidth,
                fine_map=resolved.fine_map,
                density=resolved.density,
            )
        # A third faster on CPU, and what tensor cores want; the weights stay the same numbers.
        self.model.backbone.to(memory_format=torch.channels_last)

    def on_fit_start(self) -> None:
        """Find the region of all training images, once."""
        super().on_fit_start()
        self._looked_at_pixels = False
        if self.needs_region:
            self._find_region()
        save_training_sheets(self, self.region_masks, self.pasting)

    def _region(self, samples: pd.DataFrame) -> Region:
        """How the region is found: as the model says, as the datamodule lists it, or the lungs."""
        listed = listed_region(samples)
        if self.region is not None:
            if listed is not None:
                msg = (
                    "The model has a region of its own and the datamodule lists files of it (region_path): leave out "
                    "the model's region, or the datamodule's region_dir and region_column."
                )
                raise ValueError(msg)
            return load_function(self.region)
        return Lungs(self.lung_method) if listed is None else listed

    def _find_region(self) -> None:
        self.region_masks = find_region_masks(self, self._region, self.num_workers)

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> torch.Tensor:
        """Classify normal images and the same images with something pasted."""
        images, paths = cast("torch.Tensor", batch.image), cast("list[str]", batch.image_path)
        device = images.device
        images = images.mean(dim=1, keepdim=True)
        if device.type == "cpu" or not self._looked_at_pixels:  # a device would have to be waited for
            check_images(images)
            self._looked_at_pixels = True
        images = jitter_checked(images, self.color_jitter, generator)
        region = self.region_masks.lookup(paths, device) if self.region_masks else None
        pasted = self.pasting.paste(images, region, generator)
        logits = self.model.logits(torch.cat([images, *(paste.image for paste in pasted)]))
        labels = torch.arange(self.pasting.num_classes, device=images.device).repeat_interleave(len(images))
        return F.cross_entropy(logits, labels)

    def build_bank(self, loader: DataLoader) -> None:
        """Take the training images as references of density and heat map."""
        found = [self.model.references(images) for images in self.pre_processed(loader)]
        self.model.fit(*(self.gather_references(torch.cat(parts)) for parts in zip(*found, strict=True)))

    def extend_bank(self, images: torch.Tensor) -> None:
        """Add normal images of another place to the references of the density."""
        with torch.no_grad():
            self.model.extend(*self.model.references(images))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
