"""Files of masks among files of images: which mask is of which image, and masks that are taken for images."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from anomalib_cxr.data.files import FileScan, inside, name_first, scan_images
from anomalib_cxr.data.tables import TableError
from anomalib_cxr.imaging import RADIOGRAPH_SUFFIXES, RadiographError, read_radiograph
from anomalib_cxr.imaging.listing import identity

logger = logging.getLogger(__name__)

_NAMED = re.compile(
    r"masks?$|(?:^|[^a-z])(?:masks?|gt|ground[^a-z]*truths?|segs?|segmentations?)(?:$|[^a-z])", re.IGNORECASE
)
_LOOKED_AT = 100  # folders and suffixes, the most common first


class MaskFolder:
    """A folder of masks, each under the path that its image has below the root, whatever the suffix.

    Args:
        root: Folder of the images.
        folder: Folder of the masks: relative to the root or to the working directory, or absolute, by any spelling.
        argument: What the user knows the folder by, for messages.

    Raises:
        TableError: If there is no such folder, or no image in it, or the root in it.
    """

    def __init__(self, root: Path, folder: str | Path, argument: str = "mask_dir") -> None:
        self.root = root
        self.argument = argument
        self.folder = next((path for path in (root / folder, Path(folder)) if path.is_dir()), None)
        if self.folder is None:
            msg = f"{argument} {str(folder)!r} is no folder, neither below {root} nor below the working directory"
            raise TableError(msg)
        self.scan = scan_images(self.folder)
        if identity(root) in self.scan.folders:
            msg = f"{argument} {self.folder} holds the root {root}: give the folder of the masks alone"
            raise TableError(msg)
        if not self.scan.images:
            msg = f"{argument} {self.folder} holds no images: give the folder of the masks, or none"
            raise TableError(msg)
        try:
            base = inside(root, self.folder.absolute().as_posix())
        except ValueError:
            base = self.folder.absolute().as_posix()
        self.paths = {f"{base}/{image}": image for image in self.scan.images}

    def find(self, images: Sequence[str]) -> list[str]:
        """Mask of each image.

        Args:
            images: Paths below the root.

        Returns:
            Path of each mask below the root, absolute where the folder is elsewhere, "" where there is none.

        Raises:
            TableError: If a mask is of two images, an image has two masks, or no mask is of any image.
        """
        masks = self._by_stem(((stem_of(name), path) for path, name in self.paths.items()), "masks are of one image")
        named = self._by_stem(
            ((stem, image) for image in images if (stem := stem_of(image)) in masks), "images have one mask"
        )
        strangers = sorted(set(masks) - set(named))
        if len(strangers) == len(masks):
            msg = (
                f"none of the {len(masks)} masks in {self.folder} is of an image: they have the paths of their images, "
                f"for instance {Path(images[0]).with_suffix('.png')}, not {self.scan.images[0]}"
            )
            raise TableError(msg)
        if strangers:
            logger.warning("%d masks are of no image: %s", len(strangers), name_first(strangers))
        return [masks.get(stem_of(image), "") for image in images]

    def _by_stem(self, found: Iterable[tuple[str, str]], what: str) -> dict[str, str]:
        """Paths by stem, each of one path."""
        paths: dict[str, str] = {}
        for stem, path in found:
            if stem in paths:
                msg = f"{self.argument} {self.folder}: two {what}, {paths[stem]} and {path}"
                raise TableError(msg)
            paths[stem] = path
        return paths


def without_masks(images: FileScan, folders: Iterable[MaskFolder]) -> list[str]:
    """Images of a scan of the root that lie in no folder of masks, by whatever name."""
    places = (place for folder in folders for place in folder.scan.folders)
    masks = {images.folders[place] for place in places if place in images.folders}
    return [image for image in images.images if image[: image.rfind("/") + 1] not in masks]


def stem_of(path: str) -> str:
    """Path without the suffix of its format; names such as ``1.2.840.5`` have none."""
    stem, dot, suffix = path.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in RADIOGRAPH_SUFFIXES else path


def refuse_masks(root: Path, labels: Mapping[str, str], words: Iterable[str]) -> None:
    """Refuse a tree whose images are masks in part, which would be trained and tested on.

    By their names, of folder or file: mask, gt, ground truth, segmentation. And, where images share their names with
    others in other folders or formats, by their pixels: one is looked at of each folder and suffix.

    Args:
        root: Folder of the images.
        labels: Label of each path below the root; of the abnormal ones, masks have something drawn.
        words: Names of folders that are labels or splits, in lower case.

    Raises:
        TableError: If there are masks among the images.
    """
    words = set(words)
    named = [image for image in labels if _is_named_mask(image, words)]
    if named:
        msg = (
            f"{len(named)} images below {root} are named as masks are, the first is {named[0]}: give their folder as "
            "mask_dir, or move them out of the root"
        )
        raise TableError(msg)
    twins: dict[tuple[str, str], list[str]] = defaultdict(list)
    for image, label in labels.items():
        twins[label, stem_of(image).rpartition("/")[2]].append(image)
    repeated = sorted(
        (image for group in twins.values() if len(group) > 1 for image in group),
        key=lambda image: (labels[image], image),
    )  # "abnormal" comes first
    parts = Counter(part for image in repeated for part in _parts(image))
    examples = {part: image for image in reversed(repeated) for part in _parts(image)}
    for image in dict.fromkeys(examples[part] for part, _ in parts.most_common(_LOOKED_AT)):
        if _looks_like_a_mask(root / image):
            msg = (
                f"{len(repeated)} images below {root} share their names with others, and {image} is black and white as "
                "a mask is: give the folder of the masks as mask_dir, or move them out of the root"
            )
            raise TableError(msg)


def _is_named_mask(image: str, words: set[str]) -> bool:
    folders = image.split("/")[:-1]
    name = stem_of(image).rpartition("/")[2]
    return any(_NAMED.search(part) and part.lower() not in words for part in (*folders, name))


def _parts(image: str) -> list[tuple[int, str]]:
    """Folders of a path with their depth, and its suffix."""
    *folders, name = image.split("/")
    return [*enumerate(folders), (-1, Path(name).suffix.lower())]


def _looks_like_a_mask(path: Path) -> bool:
    """Whether nine pixels in ten are as dark or as bright as any."""
    try:
        film = read_radiograph(path)
    except RadiographError:
        return False
    lowest, highest = film.min(), film.max()
    near = 0.05 * (highest - lowest)
    return bool(lowest < highest and ((film <= lowest + near) | (film >= highest - near)).mean() >= 0.9)
