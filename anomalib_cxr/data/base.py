"""Base of the radiograph datamodules: from a samples table to Anomalib's train, validation and test data."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import Transform

from anomalib_cxr.checks import check_choice
from anomalib_cxr.cores import available_cores
from anomalib_cxr.data.dataset import RadiographDataset
from anomalib_cxr.data.manifest import read_manifest
from anomalib_cxr.data.monai_intensity import refuse_bare_monai
from anomalib_cxr.data.splits import ABNORMAL, LABELS, NORMAL, SPLITS
from anomalib_cxr.data.tables import stored_depths
from anomalib_cxr.imaging import FilmReader
from anomalib_cxr.imaging.cache import Depth, ImageCache

logger = logging.getLogger(__name__)

COLUMNS = ("image_path", "label", "split", "patient_id", "findings", "mask_path")


class RadiographDataModule(AnomalibDataModule):
    """Radiographs in splits that a subclass decides row by row, and that nothing later changes.

    Anomalib's datamodules re-split what they are given, by image and by label: unless told otherwise they drop the
    normal test images. Here the ``split`` column of the table is final. Training images are all normal, validation and
    test hold both labels, and no patient is in two splits.

    Subclasses implement :meth:`make_samples`.

    Args:
        root: Folder of the data set.
        train_batch_size: Images in a training batch.
        eval_batch_size: Images in a validation or test batch.
        num_workers: Worker processes of each loader. ``None`` takes one a CPU core, at most eight.
        train_augmentations: Augmentations of training images, in place of ``augmentations``.
        val_augmentations: Augmentations of validation images, in place of ``augmentations``.
        test_augmentations: Augmentations of test images, in place of ``augmentations``.
        augmentations: Augmentations of all images (torchvision v2).
        seed: Seed of the splits. The same seed and data give the same split on any machine.
        cache_dir: Folder that keeps decoded images at ``cache_size``, filled in the first epoch or by
            :meth:`prepare_cache`. ``None``: every epoch decodes the files.
        cache_size: Height and width of the cached images, one number for both: at least the input size of the model.
        cache_depth: Bits of a cached pixel, 16 or 8.

    Raises:
        ValueError: If only one of ``cache_dir`` and ``cache_size`` is given, or an augmentation is MONAI's own.
    """

    def __init__(
        self,
        root: str | Path,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int | None = None,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        cache_size: int | Sequence[int] | None = None,
        cache_depth: Depth = 16,
    ) -> None:
        check_choice("cache_depth", cache_depth, Depth)
        given = {"train_augmentations": train_augmentations, "val_augmentations": val_augmentations}
        given |= {"test_augmentations": test_augmentations, "augmentations": augmentations}
        for argument, transform in given.items():
            refuse_bare_monai(argument, transform)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=default_num_workers() if num_workers is None else num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            val_split_mode=ValSplitMode.FROM_DIR,
            test_split_mode=TestSplitMode.FROM_DIR,
            seed=seed,
        )
        self.root = Path(root)
        self.seed: int = seed
        if (cache_dir is None) != (cache_size is None):
            msg = f"{self.name}: cache_dir and cache_size go together, the size being the input size of the model"
            raise ValueError(msg)
        self.cache: ImageCache | None = None
        if cache_dir is not None and cache_size is not None:
            self.cache = ImageCache(cache_dir, cache_size, cache_depth)

    val_labels: ClassVar[tuple[str, ...]] = LABELS
    """Labels that validation must have: normal alone in a set that has no labelled validation films."""
    reader: FilmReader | None = None
    """Of images and masks, for sets that know others than radiographs."""

    @abstractmethod
    def make_samples(self) -> pd.DataFrame:
        """Make the samples table: one row an image.

        Returns:
            Frame with ``image_path`` (str), ``label`` ("normal" or "abnormal"), ``split`` ("train", "val" or "test"),
            ``patient_id`` (str), ``findings`` (str, "" for none) and ``mask_path`` (str, "" for none). Further columns
            are kept; ``bits`` and ``boxes`` are those of :class:`RadiographDataset`.
        """

    @property
    def samples(self) -> pd.DataFrame:
        """The whole table, made and checked at first use, with ``label_index`` 0 for normal and 1 for abnormal."""
        if self._samples is None:
            self._samples = check_samples(self.make_samples(), self.name, self.val_labels)
        return self._samples

    @property
    def split_hash(self) -> str:
        """SHA-256 that says which split this is: of the split manifest, or of the rows where there is none."""
        manifest = getattr(self, "split_manifest", None)
        if manifest is not None and Path(manifest).is_file():
            return str(read_manifest(manifest, self.name)[1]["sha256"])
        samples = self.samples
        images = [Path(path) for path in samples["image_path"]]
        names = [
            path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path) for path in images
        ]
        rows = sorted(zip(names, *(samples[column] for column in ("patient_id", "label", "split")), strict=True))
        return sha256("\n".join("\0".join(map(str, row)) for row in rows).encode("utf-8", "surrogatepass")).hexdigest()

    def make_dataset(self, samples: pd.DataFrame) -> RadiographDataset:
        """Make the dataset of one split; a subclass with masks of its own kind overrides this.

        Args:
            samples: Rows of one split.

        Returns:
            The dataset, still without augmentations: Anomalib sets them together with the model's resize.
        """
        return RadiographDataset(samples, name=self.name, cache=self.cache, reader=self.reader)

    def prepare_cache(self) -> dict[str, str]:
        """Decode all images of the table into the cache, in parallel, with a progress bar.

        Returns:
            Reason for each image that cannot be read.

        Raises:
            ValueError: If there is no cache.
        """
        if self.cache is None:
            msg = f"{self.name}: give cache_dir and cache_size to prepare a cache"
            raise ValueError(msg)
        samples = self.samples
        return self.cache.prepare(samples["image_path"], stored_depths(samples), max(1, self.num_workers))

    def _setup(self, _stage: str | None = None) -> None:
        samples = self.samples
        parts = {split: self.make_dataset(samples[samples["split"] == split]) for split in SPLITS}
        self.train_data, self.val_data, self.test_data = parts["train"], parts["val"], parts["test"]
        logger.info("%s: %s", self.name, describe_splits(samples))

    def _create_test_split(self) -> None:
        """Keep the test set as the table has it: Anomalib's own method would drop its normal images."""

    def _create_val_split(self) -> None:
        """Keep the validation set as the table has it."""


def check_samples(samples: pd.DataFrame, name: str, val_labels: Sequence[str] = LABELS) -> pd.DataFrame:
    """Check a samples table and complete it with ``label_index`` and the task.

    Args:
        samples: Table as :meth:`RadiographDataModule.make_samples` returns it.
        name: Data set, for messages.
        val_labels: Labels that validation must have.

    Returns:
        A copy with ``label_index``, whose ``attrs["task"]`` is "segmentation" where any row has a mask or boxes, else
        "classification".

    Raises:
        ValueError: If a column is absent, a label or split unknown, an image or a patient in two splits, a split empty,
            an abnormal image in train, a row without patient, or validation or test without one of its labels.
    """
    absent = [column for column in COLUMNS if column not in samples.columns]
    if absent:
        msg = f"{name}: the samples table lacks the columns {absent}, it has {list(samples.columns)}"
        raise ValueError(msg)
    samples = samples.reset_index(drop=True)
    for column, allowed in (("label", LABELS), ("split", SPLITS)):
        odd = sorted({str(value) for value in samples[column]} - set(allowed))
        if odd:
            msg = f"{name}: unknown values {odd[:5]} in column '{column}', use {list(allowed)}"
            raise ValueError(msg)
    nameless = samples["patient_id"].isna() | (samples["patient_id"] == "")
    if nameless.any():
        first = samples["image_path"][nameless].iloc[0]
        msg = f"{name}: {nameless.sum()} images have no patient_id, the first is {first}"
        raise ValueError(msg)
    repeated = samples["image_path"][samples["image_path"].duplicated()]
    if len(repeated):
        msg = f"{name}: {len(repeated)} images are listed more than once, the first is {repeated.iloc[0]}"
        raise ValueError(msg)
    pairs = samples[["patient_id", "split"]].drop_duplicates()
    shared = pairs["patient_id"][pairs["patient_id"].duplicated()].unique()
    if len(shared):
        msg = f"{name}: {len(shared)} patients are in more than one split, the first is {shared[0]}"
        raise ValueError(msg)
    _check_labels(samples, name, {"val": val_labels, "test": LABELS})
    masked = samples["mask_path"] != ""
    if "boxes" in samples.columns:
        masked |= samples["boxes"].map(bool)
    has_masks = masked.any()
    maskless = samples["image_path"][(samples["label"] == ABNORMAL) & ~masked]
    if has_masks and len(maskless):
        msg = f"{name}: {len(maskless)} abnormal images have no mask while others have, the first is {maskless.iloc[0]}"
        raise ValueError(msg)
    samples["label_index"] = (samples["label"] == ABNORMAL).astype(int)
    samples.attrs["task"] = "segmentation" if has_masks else "classification"
    return samples


def _check_labels(samples: pd.DataFrame, name: str, needed: Mapping[str, Sequence[str]]) -> None:
    """Refuse empty splits, abnormal training images, and an evaluation without one of the labels."""
    counts = {split: samples["label"][samples["split"] == split].value_counts() for split in SPLITS}
    for split in SPLITS:
        if not len(counts[split]):
            msg = f"{name}: the {split} split is empty; the table has {describe_splits(samples)}"
            raise ValueError(msg)
    if ABNORMAL in counts["train"]:
        msg = f"{name}: {counts['train'][ABNORMAL]} abnormal images in the train split, which takes normal ones only"
        raise ValueError(msg)
    for split, labels in needed.items():
        for label in labels:
            if label not in counts[split]:
                msg = f"{name}: no {label} image in the {split} split, so nothing can be measured on it"
                raise ValueError(msg)


def describe_splits(samples: pd.DataFrame) -> str:
    """Say in one line how many normal and abnormal images each split holds.

    Args:
        samples: Table with ``split`` and ``label``.

    Returns:
        For instance "train 1249 normal + 0 abnormal, val 100 + 100, test 234 + 390".
    """
    counts = samples.groupby(["split", "label"]).size().to_dict()
    numbers = [(split, counts.get((split, NORMAL), 0), counts.get((split, ABNORMAL), 0)) for split in SPLITS]
    return ", ".join(f"{split} {normal} normal + {abnormal} abnormal" for split, normal, abnormal in numbers)


def default_num_workers() -> int:
    """One loader process a CPU core that this process may use, at most eight."""
    return min(8, available_cores())
