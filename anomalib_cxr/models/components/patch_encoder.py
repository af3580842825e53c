"""Encoder of one patch size: any timm model, on cut-out patches or on the cells of a whole image's feature map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models.components.patch_grid import PatchGrid, resize_matrix
from anomalib_cxr.models.components.residual_branches import open_residual_branches
from anomalib_cxr.models.components.weight_layouts import load_weights


class PatchEncoder(nn.Module):
    """A timm model on grey images.

    Grey values in [0, 1] are brought to what the weights were trained with here, inside the exported graph: stretched
    to ``input_range``, then standardised by ``mean`` and ``std``. What is not given is taken from the layout of the
    weights file, then from what timm knows of the pretrained weights; an untrained encoder has 0.5 and 0.5. With one
    input channel the weights of the first layer are summed over colours, which costs a third, and the three channels'
    statistics are averaged. All of this stays in the checkpoint.

    A transformer's levels are those of its patch tokens, after its last normalisation; class and register tokens are
    left out.

    Args:
        backbone: Name of any timm model; for levels, one that has ``forward_intermediates``.
        in_chans: ``1``, or ``3`` to repeat the grey channel (exact pretrained normalisation, dearer first layer).
        pre_trained: Whether to start from timm's weights.
        weights_path: Local file of weights for the backbone, in one of the layouts of
            :mod:`~anomalib_cxr.models.components.weight_layouts`; taken instead of timm's own. Defaults to ``None``.
        encoder_size: Side in pixels to which patches are resized before the encoder: area average when shrinking,
            bilinear when enlarging. Defaults to ``None``: as cut.
        layers: Levels of ``forward_intermediates`` used by :meth:`cells`; negative ones count from the last. Several
            levels are set to unit length in each cell and joined, so that all count the same.
        mean: Mean that the weights were trained with, in the units of ``input_range``; None as the weights say.
        std: Its standard deviation, above 0; None as the weights say.
        input_range: What black and white are for the weights; None as the weights say, otherwise 0 and 1.
        image_size: Height and width of the images that will come, for transformers, whose codes of places belong to a
            size: theirs are interpolated. None leaves them as they are; other models take any size.

    Raises:
        ValueError: If timm does not know the model, the weights file is missing or does not fit, a level does not
            exist, or a transformer cannot have the image size.
    """

    mean: Tensor
    std: Tensor

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
        input_range: Sequence[float] | None = None,
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
        if input_range is not None and (len(input_range) != 2 or not input_range[0] < input_range[1]):
            msg = f"`input_range` must be what black and white are, the lower first, got {tuple(input_range)}."
            raise ValueError(msg)
        timms_own = pre_trained and weights_path is None
        model: Any = timm.create_model(backbone, pretrained=timms_own, in_chans=in_chans, num_classes=0)
        layout = None if weights_path is None else load_weights(model, weights_path, backbone)
        if not timms_own and layout is None:
            open_residual_branches(model)
        if image_size is not None:
            _bring_to(model, image_size, backbone)
        # EfficientNets take a third to two thirds less time on CPU, and tensor cores want it.
        self.model = model.to(memory_format=torch.channels_last)
        self.in_chans = in_chans
        self.encoder_size = encoder_size
        self.num_features: int = model.num_features
        levels = [info["num_chs"] for info in getattr(model, "feature_info", ())]
        if not levels or not hasattr(model, "forward_intermediates"):
            msg = f"{backbone} shows nothing of its inside (`forward_intermediates` of timm): take another backbone."
            raise ValueError(msg)
        if not layers or any(not -len(levels) <= layer < len(levels) for layer in layers):
            msg = (
                f"`layers` must name some of the {len(levels)} levels of {backbone}, 0 the finest; got {tuple(layers)}."
            )
            raise ValueError(msg)
        self.layers = sorted({layer % len(levels) for layer in layers})
        self.level_features = [levels[layer] for layer in self.layers]
        self.map_features = sum(self.level_features)
        self._of_tokens = hasattr(model, "num_prefix_tokens")

        known: dict[str, Any] = model.pretrained_cfg if timms_own or layout is not None else {}
        black, white = input_range or (layout.input_range if layout else (0.0, 1.0))
        for name, given, zero in (("mean", mean, black), ("std", std, 0.0)):
            if given is None and layout is not None:
                given = getattr(layout, name)
            values = torch.tensor(known.get(name, (0.5,)) if given is None else (given,), dtype=torch.float32)
            if in_chans == 1:
                values = values.mean(0, keepdim=True)
            # In the units of the images, [0, 1]: the stretching costs nothing.
            values = (values - zero) / (white - black)
            self.register_buffer(name, values.view(-1, 1, 1).expand(in_chans, 1, 1).clone())

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
            self._normalise(image), indices=self.layers, norm=self._of_tokens, stop_early=True, intermediates_only=True
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Earlier checkpoints have no mean and deviation, for these followed from the backbone then."""
        for name in ("mean", "std"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _bring_to(model: Any, image_size: tuple[int, int], backbone: str) -> None:
    """Interpolate a transformer's codes of places for images of a size."""
    if hasattr(model, "set_input_size"):
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
        if any(length % side for length, side in zip(image_size, patch, strict=True)):
            below = [length - length % side for length, side in zip(image_size, patch, strict=True)]
            above = [-(-length // side) * side for length, side in zip(image_size, patch, strict=True)]
            msg = (
                f"Images of {_by(image_size)} pixels are not made of whole patches of {_by(patch)} pixels, as "
                f"{backbone} wants: take an image_size of {_by(below)} or {_by(above)}."
            )
            raise ValueError(msg)
        model.set_input_size(image_size)
    elif isinstance(getattr(model, "pos_embed", None), Tensor):
        native = model.pretrained_cfg["input_size"][1:]
        if tuple(native) != tuple(image_size):
            msg = f"timm cannot bring {backbone} to images of {_by(image_size)} pixels: take {_by(native)}."
            raise ValueError(msg)


def _by(sides: Sequence[int]) -> str:
    return "x".join(str(side) for side in sides)
