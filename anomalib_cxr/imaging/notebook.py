"""Pictures in notebooks, small enough to be kept there."""

import io
import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


def show(picture: str | os.PathLike[str] | npt.NDArray[Any], width: int = 800, quality: int = 75) -> None:
    """Show a picture below a notebook's cell, as a JPEG that keeps the notebook small.

    Args:
        picture: Picture file, or (H, W) or (H, W, 3) array, float in [0, 1] or uint8.
        width: Larger pictures are shrunk to so many pixels, and to twice as many in height.
        quality: Of the JPEG, 1 to 95.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If IPython is not installed.

    Examples:
        >>> from anomalib_cxr.imaging import show
        >>> show("results/AnatPaste/PhantomCXR/latest/sheets/heat_maps.png")  # doctest: +SKIP
    """
    try:
        from IPython.display import Image as Shown
        from IPython.display import display
    except ImportError as error:
        msg = 'Pictures are shown in notebooks only: pip install "anomalib-cxr[notebooks]"'
        raise ImportError(msg) from error
    if isinstance(picture, np.ndarray):
        pixels = picture if picture.dtype == np.uint8 else np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        image = Image.fromarray(pixels)
    else:
        image = Image.open(picture)
    image.thumbnail((width, 2 * width))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    display(Shown(buffer.getvalue(), format="jpeg"))
