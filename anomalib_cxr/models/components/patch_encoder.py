"""Encoder of one patch size: any timm model, on cut-out patches or on the cells of a whole image's feature map."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models.components.patch_grid import PatchGrid, resize_matrix
from anomalib_cxr.models.components.residual_branches import open_residual_branches

logger = logging.getLogger(__name__)


class PatchEncoder(nn.Module):
    """A timm model on grey images.

    Grey values in [0, 1] are normalised here, inside the exported graph: by the mean and standard deviation that the
    pretrained weights were trained with, or by 0.5 and 0.5 for an untrained encoder. With one input channel timm
    sums the weights of the first layer over colours, which costs a third, and the three channels' statistics are
    averaged.

    Weights that timm does not publish need not be named by it: one in timm's layout, or in one that timm converts
    (OpenAI's CLIP, DINOv2), is loaded by ``weights_path``, and ``mean`` and ``std`` say what it was trained with.

    Args:
        backbone: Name of any timm model.
        in_chans: ``1``, or ``3`` to repeat the grey channel (exact pretrained normalisation, dearer first layer).
        pre_trained: Whether to start from timm's weights.
        weights_path: Local file of weights for the backbone (``.safetensors``, ``.pth``), in the layout timm gives
            them; taken instead of timm's own. Defaults to ``None``.
        encoder_size: Side in pixels to which patches are resized before the encoder: area average when shrinking,
            bilinear when enlarging. Defaults to ``None``: as cut.
        layers: Levels of ``forward_intermediates`` used by :meth:`cells`; negative ones count from the last. Several
            levels are set to unit length in each cell and joined, so that all count the same.
        mean: Mean grey value that the weights were trained with, in [0, 1]; None takes what timm knows of them.
        std: Its standard deviation, above 0; None takes what timm knows.
        image_size: Height and width of the images that will come, for transformers, whose codes of places belong to a
            size: theirs are interpolated. None leaves them as they are; other models take any size.

    Raises:
        ValueError: If timm does not know the model, the weights file is missing, or a level does not exist.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        in_chans: int = 1,
        pre_trained: bool = False,
        weights_path: str | Path | None = None,
        encoder_size: int | None = None,
        layers: Sequence[int] = (-2, -1),
        mean: float | None = None,
        std: float | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(backbone) and not backbone.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
            msg = f"timm knows no model {backbone!r}: `timm.list_models()` lists the names."
            raise ValueError(msg)
        if in_chans not in (1, 3):
            msg = f"`in_chans` must be 1 or 3, got {in_chans}: radiographs are grey."
            raise ValueError(msg)
        if encoder_size is not None and encoder_size < 1:
            msg = f"`encoder_size` must be at least 1 pixel, got {encoder_size}."
            raise ValueError(msg)
        if std is not None and not std > 0:
            msg = f"`std` must be positive, got {std}."
            raise ValueError(msg)
        overlay = None
        if weights_path is not None:
            if not Path(weights_path).is_file():
                msg = f"There is no weights file {weights_path}: give `weights_path` an existing file."
                raise ValueError(msg)
            overlay = {"file": str(weights_path)}
        pretrained = pre_trained or weights_path is not None
        model: Any = timm.create_model(
            backbone, pretrained=pretrained, pretrained_cfg_overlay=overlay, in_chans=in_chans, num_classes=0
        )
        if not pretrained:
            open_residual_branches(model)
        if image_size is not None and hasattr(model, "set_input_size"):
            model.set_input_size(image_size)
        # EfficientNets take a third to two thirds less time on CPU, and tensor cores want it.
        self.model = model.to(memory_format=torch.channels_last)
        self.in_chans = in_chans
        self.encoder_size = encoder_size
        self.num_features: int = model.num_features
        levels = [info["num_chs"] for info in model.feature_info]
        if not layers or any(not -len(levels) <= layer < len(levels) for layer in layers):
            msg = (
                f"`layers` must name some of the {len(levels)} levels of {backbone}, 0 the finest; got {tuple(layers)}."
            )
            raise ValueError(msg)
        self.layers = sorted({layer % len(levels) for layer in layers})
        self.level_features = [levels[layer] for layer in self.layers]
        self.map_features = sum(self.level_features)

        config: dict[str, Any] = model.pretrained_cfg if pretrained else {}
        for name, given in (("mean", mean), ("std", std)):
            known = torch.tensor(config.get(name, (0.5,)) if given is None else (given,), dtype=torch.float32)
            if in_chans == 1:
                known = known.mean(0, keepdim=True)
            self.register_buffer(name, known.view(-1, 1, 1).expand(in_chans, 1, 1).clone(), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, patches: Tensor) -> Tensor:
        """Encode patches.

        Args:
            patches: Grey patches in [0, 1], shape ``(n, 1, p, p)``.

        Returns:
            Pooled features h of shape ``(n, num_features)``.
        """
        return self.model(self._normalise(self._resize(patches)))

    def levels(self, image: Tensor) -> list[Tensor]:
        """Feature maps of whole images at the levels of ``layers``, the finest first.

        Args:
            image: Grey images in [0, 1], shape ``(B, 1, H, W)``.

        Returns:
            One map of shape ``(B, level_features[i], h, w)`` for each level.
        """
        return self.model.forward_intermediates(
            self._normalise(image), indices=self.layers, stop_early=True, intermediates_only=True
        )

    def cells(self, image: Tensor, grid: PatchGrid) -> Tensor:
        """Features of the grid's cells from one pass over the whole image (ours).

        Args:
            image: Grey images in [0, 1], shape ``(B, 1, H, W)``.
            grid: Cells over which the levels of ``layers`` are averaged.

        Returns:
            Features of shape ``(B, rows, cols, map_features)``.
        """
        pooled = [grid.pool(level) for level in self.levels(image)]
        return pooled[0] if len(pooled) == 1 else torch.cat([F.normalize(level, dim=-1) for level in pooled], dim=-1)

    def _resize(self, patches: Tensor) -> Tensor:
        side = patches.shape[-1]
        if self.encoder_size is None or self.encoder_size == side:
            return patches
        if self.encoder_size > side:
            return F.interpolate(patches, size=(self.encoder_size,) * 2, mode="bilinear", align_corners=False)
        average = resize_matrix(side, self.encoder_size).to(patches)
        return average.T @ patches @ average

    def _normalise(self, grey: Tensor) -> Tensor:
        return (grey.expand(-1, self.in_chans, -1, -1) - self.mean) / self.std
