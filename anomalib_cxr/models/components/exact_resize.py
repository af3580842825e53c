"""A pre-processor whose resizing is the same in training and in an exported graph."""

import logging
from typing import Any

import torch
from anomalib.pre_processing import PreProcessor
from torch import Tensor
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize, Transform

logger = logging.getLogger(__name__)


class ExactResizePreProcessor(PreProcessor):
    """Resizes with antialiasing in an exported graph, as torchvision does in training.

    Anomalib switches the antialiasing of every ``Resize`` off on export, because the operator does not exist there: a
    model is then shown other pixels than it was trained on (from 512² to 256² they differ by up to 0.31). Here each
    antialiased bilinear ``Resize`` to a fixed height and width is exported as two matrix products
    (:func:`antialiased_resize`), for any input size. Where resizing is all there is to do, images are averaged to grey
    before it, as our models would do after it: a third of the work. (Ours.)

    ``transform`` stays torchvision's, so that datasets, checkpoints and ``input_size`` know it.

    Args:
        transform: As in Anomalib. Checkpoints keep it if Anomalib can (``Resize``, ``Normalize``, ``Compose`` …).
    """

    def __init__(self, transform: Transform | None = None) -> None:
        super().__init__(transform)
        self._export_exactly()

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the transform of a checkpoint."""
        super().load_checkpoint_config(config)
        self._export_exactly()

    def _export_exactly(self) -> None:
        # super() has made `export_transform` a copy without antialiasing.
        if self.transform is not None:
            self.export_transform = _exact(self.transform, self.export_transform)

    def forward(self, batch: Tensor) -> Tensor:
        """Pre-process images for an exported model.

        Args:
            batch: (B, 3 or 1, H, W) in [0, 1], any size.

        Returns:
            (B, 1, h, w) if the transform is a resize and nothing else, otherwise what the transform makes of it.
        """
        if isinstance(self.export_transform, AntialiasedResize):
            batch = batch.mean(dim=1, keepdim=True)
        return super().forward(batch)


class AntialiasedResize(Transform):
    """:func:`antialiased_resize` as a transform of images.

    Args:
        size: Height and width of the result.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one batch of images."""
        del params
        return antialiased_resize(inpt, self.size)


def antialiased_resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize like torchvision's antialiased bilinear ``Resize``, by operations that every runtime has.

    Output pixel ``i`` is the mean of the input under a triangle centred on it, whose half width is one output pixel
    where the image shrinks and one input pixel where it grows. That is a matrix product along each axis.

    Args:
        images: (…, H, W) float; H and W may be symbolic while exporting.
        size: Height and width of the result.

    Returns:
        (…, h, w); equal to torchvision up to rounding (about 1e-6 for images in [0, 1]).
    """
    rows = triangle_weights(images.shape[-2], size[0], images)
    columns = triangle_weights(images.shape[-1], size[1], images)
    return rows @ images @ columns.T


def triangle_weights(length: int, out_length: int, like: Tensor) -> Tensor:
    """Weight of each input pixel in each output pixel along one axis.

    Args:
        length: Pixels of the input.
        out_length: Pixels of the output.
        like: Tensor whose type and device the weights get.

    Returns:
        (out_length, length), rows sum to 1.
    """
    # A length may be symbolic here, so scale is a tensor and no branch depends on it.
    pixels = torch.arange(length, dtype=like.dtype, device=like.device)
    scale = torch.full((), 1.0, dtype=like.dtype, device=like.device) * length / out_length
    centres = (torch.arange(out_length, dtype=like.dtype, device=like.device) + 0.5) * scale
    offsets = (pixels + 0.5 - centres[:, None]) / scale.clamp(min=1.0)
    weights = (1.0 - offsets.abs()).clamp(min=0.0)
    return weights / weights.sum(dim=1, keepdim=True)


def _exact(transform: Transform, exported: Transform | None) -> Transform | None:
    """Put the exact resize in place of Anomalib's copies of antialiased ones."""
    if isinstance(transform, Compose) and isinstance(exported, Compose):
        pairs = zip(transform.transforms, exported.transforms, strict=True)
        return Compose([_exact(ours, theirs) for ours, theirs in pairs])
    if not isinstance(transform, Resize) or not transform.antialias:
        return exported
    size = transform.size
    bilinear = transform.interpolation in {InterpolationMode.BILINEAR, InterpolationMode.BILINEAR.value}
    if isinstance(size, int) or len(size) != 2 or not bilinear or transform.max_size is not None:
        logger.warning(
            "%s is exported without antialiasing and will give other scores on larger images: "
            "use a bilinear Resize to a fixed (height, width).",
            transform,
        )
        return exported
    return AntialiasedResize((size[0], size[1]))
