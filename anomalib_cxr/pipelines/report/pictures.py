"""The pictures of a run, found by image and made small enough to stand in a page."""

import base64
import io
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pandas as pd
from PIL import Image, UnidentifiedImageError

from anomalib_cxr.metrics.predictions import PICTURE
from anomalib_cxr.run_folder import PICTURES

logger = logging.getLogger(__name__)

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
_QUALITY = 72


def match_pictures(folder: Path, predictions: pd.DataFrame) -> tuple[dict[str, Path], int]:
    """Find the picture of each image: the one that the predictions name, or else by the image's name.

    Args:
        folder: Folder of the run.
        predictions: Its predictions, with ``image`` and ``picture``.

    Returns:
        Image and its picture, and the number of images that share theirs.
    """
    named = predictions[predictions[PICTURE] != ""]
    if len(named):
        paths = {image: folder / picture for image, picture in zip(named["image"], named[PICTURE], strict=True)}
        return {image: path for image, path in paths.items() if path.is_file()}, 0
    return _match_by_name(folder, predictions["image"].tolist())


def _match_by_name(folder: Path, images: Sequence[str]) -> tuple[dict[str, Path], int]:
    """Find pictures as Anomalib names them.

    It names a picture after the last folder and the name of its image, or after all that follows the data set's
    folder; a DICOM's gets ``.png`` besides. Two images of one such name have overwritten each other's picture: then
    neither has one.
    """
    by_name: dict[str, list[tuple[tuple[str, ...], Path]]] = defaultdict(list)
    for path in sorted((folder / PICTURES).rglob("*")):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            by_name[path.name].append((path.relative_to(folder / PICTURES).parts, path))
    chosen: dict[str, Path] = {}
    owners: dict[Path, list[str]] = defaultdict(list)
    for image in images:
        parts = PurePosixPath(image.replace("\\", "/")).parts
        name = parts[-1] if parts else ""
        best: dict[int, list[Path]] = defaultdict(list)
        for candidate, path in (*by_name.get(name, ()), *by_name.get(f"{name}.png", ())):
            shared = min(len(candidate), len(parts)) - 1
            if shared == 0 or candidate[-1 - shared : -1] == parts[-1 - shared : -1]:
                best[shared].append(path)
        if best and len(best[max(best)]) == 1:
            path = best[max(best)][0]
            chosen[image] = path
            owners[path].append(image)
    shared_by = {image for listed in owners.values() if len(listed) > 1 for image in listed}
    return {image: path for image, path in chosen.items() if image not in shared_by}, len(shared_by)


def data_uri(path: Path, longest: int = 640) -> str | None:
    """Encode a picture as a small JPEG for an ``img`` element.

    Args:
        path: Picture file.
        longest: Its longest side at most, in pixels.

    Returns:
        ``data:`` URI; None if the file is no picture, which the log says.
    """
    try:
        with Image.open(path) as opened:
            return encode(opened, longest)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        logger.warning("The picture %s cannot be shown: %s", path, error)
        return None


def encode(picture: Image.Image, longest: int = 640) -> str:
    """Encode a picture as a small JPEG for an ``img`` element.

    Args:
        picture: Of any mode.
        longest: Its longest side at most, in pixels.

    Returns:
        ``data:`` URI.
    """
    small = picture.convert("RGB")
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
