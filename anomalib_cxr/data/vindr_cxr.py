"""VinDr-CXR: 18,000 adult PA chest X-rays with readers' boxes (Nguyen et al., Scientific Data 2022; PhysioNet licence).

Layout of PhysioNet, or of the VinBigData challenge, which has the training part only::

    root/                                                 root/
    ├── annotations/annotations_{train,test}.csv          ├── train.csv    (or annotations_train.csv)
    ├── annotations/image_labels_{train,test}.csv         ├── train_meta.csv    optional: original sizes
    ├── train/<image_id>.dicom    15,000                  └── train/<image_id>.dicom, or converted
    └── test/<image_id>.dicom      3,000

What the tables are like: one row a box and reader (``rad_id``), ``class_name`` "No finding" and no box where a reader
saw nothing. Three readers read each training film, each alone, and in the challenge's table they agree whether there is
something (in all of 971 films looked at), though not where; the test films have the consensus of five, and no
``rad_id``. The labels of images name diseases that have no box; "Other diseases" is "Other disease" in the test's.
Boxes are in pixels of the original film, and films differ in size. Nothing says which films are of one patient.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.data.dataset import Box
from anomalib_cxr.data.files import images_by_stem
from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.splits import ABNORMAL, NORMAL, shrink_counts, split_by_counts, split_officially
from anomalib_cxr.data.table_datamodule import (
    TableDataModule,
    compare_counts,
    compare_splits,
    find_table,
    locate_table,
)
from anomalib_cxr.data.tables import TableError, parse_number, read_columns, refuse_repeated

logger = logging.getLogger(__name__)

NO_FINDING = "No finding"
LOCAL = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
)
"""Findings that readers drew boxes around."""
GLOBAL = ("COPD", "Lung tumor", "Other diseases", "Pneumonia", "Tuberculosis")
"""Diseases that they named for the whole film."""

_CLASSES = {name: name for name in (NO_FINDING, *LOCAL, *GLOBAL)} | {"Other disease": "Other diseases"}
_BOX = ["x_min", "y_min", "x_max", "y_max"]
_PUBLISHED = {"train": 15_000, "train normal": 10_606, "test": 3_000}
_DRAWN = {"test": {NORMAL: 1000, ABNORMAL: 1000}, "train": {NORMAL: 4000}}
_VALIDATION = {"val": {NORMAL: 1000, ABNORMAL: 1000}}
_NAME = re.compile(r"[\w-]+")

Split = Literal["image", "official"]
Votes = Literal["any", "majority", "all"]
Preset = Literal["medianomaly"]


@dataclass
class _Film:
    """What is said of one film: classes by reader, and all boxes, x_min, y_min, x_max, y_max, each once."""

    said: dict[str, set[str]] = field(default_factory=dict)
    boxes: dict[Box, None] = field(default_factory=dict)


class VinDrCXR(TableDataModule):
    """VinDr-CXR with its readers' boxes as ground-truth masks.

    A film is normal if all its readers say "No finding", abnormal if as many of them as ``votes`` asks for say
    something else; what lies between is left out with a count. ``findings`` holds what any reader named. The boxes of
    all readers are joined into one mask.

    By default the training films are divided by ``val_ratio`` and ``test_ratio``. ``split="official"`` tests on the
    official test films, which only PhysioNet's copy has labels of, and draws validation from the training films. No
    patient is known, so **splits are by image**: two films of one patient may be in two parts.

    Preset ``medianomaly`` (DDAD, Cai et al., MICCAI 2022; MedIAnomaly, Cai et al., Medical Image Analysis 2025): 4,000
    normals to train, 1,000 normal + 1,000 abnormal films as test, all of the training part. They have no validation
    set; ours is 1,000 + 1,000 of the films that they leave as unlabelled. The draw is ours, while
    :class:`~anomalib_cxr.data.MedAD` reads theirs. Where a copy has fewer films, the counts shrink in proportion, and
    the log says so.

    Args:
        root: Folder with the tables and the images.
        votes: Readers who must find something in an abnormal film: ``any``, the ``majority`` or ``all`` of them.
        split: ``image`` or ``official``.
        masks: Use the boxes as masks; abnormal films without one, of a disease of the whole film, are left out. If
            not, they stay, and there are no masks.
        sizes: CSV file with ``image_id``, ``dim0`` and ``dim1``, height and width of each original film, relative to
            the root or the working directory: needed for the masks of films that somebody made smaller. ``None``: the
            files have the original sizes, which is checked whenever a mask is drawn.
        preset: ``medianomaly`` or None.
        **kwargs: Split, subset and loader arguments, see :class:`TableDataModule`.
    """

    split_settings: ClassVar[tuple[str, ...]] = ("votes", "split", "masks")

    def __init__(
        self,
        root: str | Path = "./datasets/vindr-cxr",
        votes: Votes = "any",
        split: Split = "image",
        masks: bool = True,
        sizes: str | Path | None = None,
        preset: Preset | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.votes = check_choice("votes", votes, Votes)
        self.split = check_choice("split", split, Split)
        self.masks = masks
        self.sizes = Path(sizes) if sizes is not None else None
        self.preset = check_choice("preset", preset, Preset | None)
        if preset is not None and (split != "image" or self.fold is not None):
            msg = f"VinDrCXR: preset {preset} divides the training films, drop split and fold"
            raise ValueError(msg)

    def load_table(self) -> pd.DataFrame:
        """Join what the readers say of each film.

        Returns:
            Table of all films of the parts that the split needs; ``part`` is "train" or "test".

        Raises:
            TableError: If a table is broken: a column missing, a class unknown, a box that is none, a reader who sees
                nothing and something, or the same twice; or if a film is in both parts.
        """
        logger.warning("VinDrCXR: no patient is known, each film counts as one: splits are by image")
        parts = ["train", "test"] if self.split == "official" else ["train"]
        films = {part: self._read_part(part) for part in parts}
        both = films["train"].keys() & films.get("test", {}).keys()
        if both:
            msg = f"VinDrCXR: {len(both)} films of {self.root} are in train and in test, the first is {min(both)}"
            raise TableError(msg)
        rows = [(part, image, film) for part, its in films.items() for image, film in its.items()]
        labels = [self._label(film) for _, _, film in rows]
        found = {part: len(its) for part, its in films.items()}
        found["train normal"] = labels[: found["train"]].count(NORMAL)
        compare_counts(self.name, "official", found, {key: n for key, n in _PUBLISHED.items() if key in found})
        columns: dict[str, Any] = {
            "image_path": [path for part, its in films.items() for path in self._locate(part, its)],
            "label": labels,
            "patient_id": [image for _, image, _ in rows],
            "findings": ["|".join(sorted(set().union(*film.said.values()) - {NO_FINDING})) for _, _, film in rows],
            "part": [part for part, _, _ in rows],
        }
        if self.masks:
            columns["boxes"] = self._boxes_of([(image, film) for _, image, film in rows])
            columns["boxes_in_pixels"] = self.sizes is None
        return pd.DataFrame(columns).assign(mask_path="")

    def select(self, selection: Selection) -> None:
        """Filter by votes, and by boxes if there are to be masks.

        Args:
            selection: The table.
        """
        selection.keep(selection.table["label"] != "", f"normal to all, or abnormal to {self.votes}")
        if self.masks:
            selection.keep_boxed()

    def make_splits(self, table: pd.DataFrame) -> pd.Series:
        """Take the official test set and draw validation from the rest, or divide the training films.

        Args:
            table: The filtered table.

        Returns:
            "train", "val", "test" or "" (not used) for each row.
        """
        if self.split == "official" and self.fold is None:
            return split_officially(table, table["part"], self.seed, self.val_ratio)
        return super().make_splits(table)

    def split_preset(self, table: pd.DataFrame) -> pd.Series:
        """Draw the published numbers of films, and validation from those that are left.

        Args:
            table: The filtered table.

        Returns:
            Split of each row, "" where not used.
        """
        split = split_by_counts(table, shrink_counts(table, _DRAWN | _VALIDATION), self.seed)
        compare_splits(self.name, str(self.preset), table, split, _DRAWN)
        return split

    def _read_part(self, part: str) -> dict[str, _Film]:
        """Collect what is said of each film of a part, from both of its tables."""
        names = [f"annotations_{part}.csv", f"annotations/annotations_{part}.csv"]
        path = find_table(self.root, [*names, "train.csv"] if part == "train" else names, self.name)
        columns = read_columns(path, ["image_id", "class_name", *_BOX], ["rad_id"])
        readers = columns.pop("rad_id", None) or [""] * len(columns["image_id"])
        films: dict[str, _Film] = {}
        repeated = 0
        for row, (reader, image, name, *cells) in enumerate(zip(readers, *columns.values(), strict=True), start=1):
            where = f"{path}, data row {row}"
            film = films.setdefault(_checked(image, where), _Film())
            said = film.said.setdefault(reader.strip(), set())
            finding = _CLASSES.get(name.strip())
            if finding is None:
                msg = f"{where}: unknown class {name[:80]!r}, there are {list(_CLASSES)}"
                raise TableError(msg)
            if finding == NO_FINDING and finding in said:
                msg = f"{where}: rows repeat that reader {reader[:20]!r} sees nothing in {image}"
                raise TableError(msg)
            said.add(finding)
            if NO_FINDING in said and len(said) > 1:
                msg = f"{where}: reader {reader[:20]!r} sees nothing and something in {image}"
                raise TableError(msg)
            if finding != NO_FINDING and any(cell.strip() for cell in cells):
                box = _box(cells, where)
                repeated += box in film.boxes
                film.boxes[box] = None
        if repeated:
            logger.info("VinDrCXR: %d rows of %s repeat a box", repeated, path.name)
        labels = [self.root / f"{folder}image_labels_{part}.csv" for folder in ("", "annotations/")]
        for path in labels:
            if path.is_file():
                _add_labels(films, path)
        return films

    def _label(self, film: _Film) -> str:
        """Label of a film by the votes of its readers."""
        votes = sum(NO_FINDING not in said for said in film.said.values())
        if not votes:
            return NORMAL
        needed = {"any": 1, "majority": len(film.said) // 2 + 1, "all": len(film.said)}[self.votes]
        return ABNORMAL if votes >= needed else ""

    def _locate(self, part: str, images: Sequence[str] | dict[str, _Film]) -> list[str]:
        """Path of each film below the root, by one look at the folder of the part, else the root."""
        folder = part if (self.root / part).is_dir() else ""
        files = images_by_stem(self.root, folder)
        return [files.get(image, f"{folder}/{image}.dicom".lstrip("/")) for image in images]

    def _boxes_of(self, films: list[tuple[str, _Film]]) -> list[tuple[Box, ...]]:
        """Boxes of each film as x, y, width, height: in pixels, or in fractions where sizes are given."""
        sizes = None if self.sizes is None else _read_sizes(locate_table(self.root, self.sizes))
        boxes = []
        for image, film in films:
            if sizes is not None and film.boxes and image not in sizes:
                msg = f"VinDrCXR: {self.sizes} has no size of {image}, which has boxes"
                raise TableError(msg)
            height, width = (1.0, 1.0) if sizes is None or not film.boxes else sizes[image]
            for x_max, y_max in (box[2:] for box in film.boxes):
                if sizes is not None and (x_max > width or y_max > height):
                    msg = f"VinDrCXR: {self.sizes} says that {image} is {height:g} x {width:g}, but it has a box beyond"
                    raise TableError(msg)
            boxes.append(tuple((x / width, y / height, (r - x) / width, (b - y) / height) for x, y, r, b in film.boxes))
        return boxes


def _checked(image: str, where: str) -> str:
    """The name of a film, which is the name of its file."""
    if not _NAME.fullmatch(image):
        msg = f"{where}: {image[:80]!r} is no image_id"
        raise TableError(msg)
    return image


def _box(cells: Sequence[str], where: str) -> Box:
    """Corners of a box."""
    x_min, y_min, x_max, y_max = map(parse_number, cells)
    # Not what is wrong, so that a missing number is wrong too.
    if not (0 <= x_min < x_max and 0 <= y_min < y_max):
        msg = f"{where}: {list(cells)} is no box"
        raise TableError(msg)
    return x_min, y_min, x_max, y_max


def _add_labels(films: dict[str, _Film], path: Path) -> None:
    """Add the diseases without boxes that readers named for whole films."""
    columns = read_columns(
        path, ["image_id", NO_FINDING], ["rad_id", *(name for name in _CLASSES if name != NO_FINDING)]
    )
    images = columns.pop("image_id")
    readers = columns.pop("rad_id", None) or [""] * len(images)
    refuse_repeated([f"{image} {reader}" for image, reader in zip(images, readers, strict=True)], "image_id", path)
    for row, (image, reader, *cells) in enumerate(zip(images, readers, *columns.values(), strict=True), start=1):
        where = f"{path}, data row {row}"
        values = [parse_number(cell) for cell in cells]
        if not set(values) <= {0.0, 1.0}:
            msg = f"{where}: a label is neither 0 nor 1"
            raise TableError(msg)
        named = {_CLASSES[name] for name, value in zip(columns, values, strict=True) if value}
        said = films.setdefault(_checked(image, where), _Film()).said.setdefault(reader.strip(), set())
        if not named or (NO_FINDING in named and (len(named) > 1 or said - {NO_FINDING})):
            msg = f"{where}: reader {reader[:20]!r} sees neither nothing nor something in {image}, or both"
            raise TableError(msg)
        if named != {NO_FINDING}:
            said.discard(NO_FINDING)  # nothing that has a box
        said |= named


def _read_sizes(path: Path) -> dict[str, tuple[float, float]]:
    """Height and width of each original film."""
    columns = read_columns(path, ["image_id", "dim0", "dim1"])
    refuse_repeated(columns["image_id"], "image_id", path)
    sizes = {}
    for row, (image, *cells) in enumerate(zip(*columns.values(), strict=True), start=1):
        height, width = map(parse_number, cells)
        if not (height > 0 and width > 0):
            msg = f"{path}, data row {row}: {cells} is no size of a film"
            raise TableError(msg)
        sizes[image] = (height, width)
    return sizes
