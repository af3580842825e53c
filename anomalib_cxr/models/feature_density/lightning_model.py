"""FeatureDensity as an Anomalib module: training glue."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch.utils.data import DataLoader

from anomalib_cxr.imaging.progress import progress
from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.weight_layouts import published_backbone
from anomalib_cxr.models.feature_density.torch_model import FeatureDensityModel

#: What ``preset`` sets; an argument given by the user wins. "paper" is the classical row, "laptop" is ours.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "image_size": 256,
        "backbone": "tf_efficientnet_lite0",
        "layers": (-2,),
        "cell_size": 32,
        "density": "knn",
        "local": True,
        "unit_length": True,
    },
    "paper": {
        "image_size": 224,
        "backbone": "resnet18",
        "layers": (-1,),
        "cell_size": 32,
        "density": "gaussian",
        "local": False,
        "unit_length": False,
    },
}


class FeatureDensity(BankMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """FeatureDensity: frozen features of any timm encoder, scored by a classical one-class method.

    Nothing is trained: one pass over the normal training images, and scikit-learn fits a density of their features,
    which torch then scores. ``preset="paper"`` is the two-stage row of the literature on chest radiographs (Cai et al.,
    "MedIAnomaly", Medical Image Analysis 2025, arXiv 2404.04518): the pooled features of a ResNet-18 trained on
    ImageNet, under one Gaussian. What is cell by cell is ours.

    Args:
        preset: ``"laptop"`` (ours: EfficientNet-lite0 at 256², a density for each place of the last feature map but
            one, chosen on ZhangLab's validation images), or ``"paper"`` (224², ResNet-18, one Gaussian of the pooled
            features). The arguments whose default is None override it.
        image_size: Side of the square model input in pixels.
        density: ``"kde"`` (Gaussian kernel on features of unit length), ``"svm"`` (one-class support vector machine,
            which ranks as the support vector data description), ``"pca"`` (distance from the principal subspace),
            ``"gaussian"`` (Mahalanobis distance, the covariance shrunk after Ledoit and Wolf) or ``"knn"`` (mean
            distance to the nearest neighbours); see
            :mod:`~anomalib_cxr.models.feature_density.densities`.
        density_options: Arguments of the density: ``bandwidth`` of kde, ``nu`` of svm, ``components`` of pca,
            ``neighbours`` of knn.
        backbone: Any timm model that has feature maps or tokens; None takes the one that ``weights_path`` is published
            for, or the preset's.
        pre_trained: Take timm's weights; without them, and without ``weights_path``, the encoder is random.
        weights_path: Local weights file for the encoder, as timm, DINOv2 or ``transformers`` (RAD-DINO), OpenAI's CLIP
            (CheXzero) or TorchXRayVision name its weights.
        mean: Mean that the weights were trained with, in the units of ``input_range``; None as the weights' layout
            says, otherwise as timm knows.
        std: Its standard deviation; None likewise.
        input_range: What black and white are for the weights; None as the layout says, otherwise 0 and 1.
        layers: Levels of the encoder, -1 the last, joined.
        cell_size: Side of a cell in pixels of the input.
        local: A density for each cell, whose standardised scores are the map and their mean the score; False: one of
            the pooled features.
        unit_length: Set features to unit length.
        top_q: With ``local``, share of the highest cells that the score averages.
        seed: Seed of a random encoder.
        films_in_memory: As of every detector; nothing is read twice here.
        pre_processor: As in Anomalib; the default resizes to ``image_size``.
        post_processor: As in Anomalib; the default keeps ranks.
        evaluator: As in Anomalib; the default adds AUROC on validation.
        visualizer: As in Anomalib.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    map_description = "how far the features of each cell lie from those of normal training images"

    def __init__(
        self,
        preset: Literal["laptop", "paper"] = "laptop",
        image_size: int | None = None,
        density: str | None = None,
        density_options: Mapping[str, float] | None = None,
        backbone: str | None = None,
        pre_trained: bool = True,
        weights_path: str | None = None,
        mean: float | None = None,
        std: float | None = None,
        input_range: Sequence[float] | None = None,
        layers: Sequence[int] | None = None,
        cell_size: int | None = None,
        local: bool | None = None,
        unit_length: bool | None = None,
        top_q: float = 1.0,
        seed: int = 0,
        films_in_memory: bool | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if backbone is None and weights_path is not None:
            backbone = published_backbone(weights_path)
        resolved = resolve_preset(
            PRESETS,
            preset,
            image_size=image_size,
            density=density,
            backbone=backbone,
            layers=layers,
            cell_size=cell_size,
            local=local,
            unit_length=unit_length,
        )
        side = resolved.image_size
        if pre_processor is True:
            pre_processor = BankMixin.configure_pre_processor((side, side))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.set_up_training(
            seed=seed,
            max_steps=0,
            least_steps=0,
            steps_per_epoch=None,
            default_steps_per_epoch=1,
            checkpoint="last",
            films_in_memory=films_in_memory,
        )
        with seeded(seed):
            self.model: FeatureDensityModel = FeatureDensityModel(
                density=resolved.density,
                density_options=density_options,
                backbone=resolved.backbone,
                pre_trained=pre_trained,
                weights_path=weights_path,
                mean=mean,
                std=std,
                input_range=input_range,
                layers=resolved.layers,
                cell_size=resolved.cell_size,
                local=resolved.local,
                unit_length=resolved.unit_length,
                top_q=top_q,
                image_size=(side, side),
            )
        self.keep_resolved(**vars(resolved), density_options=dict(density_options or {}))

    def build_bank(self, loader: DataLoader) -> None:
        """Collect the features of the training images and fit the density."""
        batches = progress(self.pre_processed(loader), "Features", len(loader), unit="batch")
        features = [self.model.features(images) for images in batches]
        self.model.fit(self.gather_references(torch.cat(features)))
