"""Antialiased bilinear resizing in numpy, as the exported graph does it."""

import numpy as np
import numpy.typing as npt


def antialiased_resize(image: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resize like torchvision's antialiased bilinear ``Resize``.

    Done before the graph, so that the graph always gets images of one size, in batches, and the runtime need not
    prepare itself for every size of detector. The graph's own resize then changes nothing.

    Args:
        image: (H, W) brightness.
        size: Height and width of the result.

    Returns:
        (h, w), equal to torchvision up to rounding (about 1e-6 for images in [0, 1]).
    """
    if image.shape == size:
        return image
    rows = triangle_weights(image.shape[0], size[0])
    columns = triangle_weights(image.shape[1], size[1])
    return np.asarray(rows @ image @ columns.T, np.float32)


def triangle_weights(length: int, out_length: int) -> npt.NDArray[np.float32]:
    """Weight of each input pixel in each output pixel along one axis.

    Args:
        length: Pixels of the input.
        out_length: Pixels of the output.

    Returns:
        (out_length, length), rows sum to 1: triangles whose half width is an output pixel where the image shrinks, an
        input pixel where it grows.
    """
    scale = length / out_length
    centres = (np.arange(out_length) + 0.5) * scale
    offsets = (np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - np.abs(offsets))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
