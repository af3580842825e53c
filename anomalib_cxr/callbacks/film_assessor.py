"""Says which films of a run should not be judged by their score, by limits fixed on the training normals (ours)."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from anomalib.data import AnomalibDataset
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from anomalib_cxr.anatomy.assessable import FEWEST, LIMITS_KEY, RATE, Assessment, FilmLimits
from anomalib_cxr.anatomy.film_look import TrainingLook, look_at_training_film
from anomalib_cxr.checkpoint_files import load_checkpoint
from anomalib_cxr.deploy.resize import antialiased_resize
from anomalib_cxr.distributed import gather_objects
from anomalib_cxr.imaging.progress import progress

logger = logging.getLogger(__name__)

_CHUNK = 8  # films a task of a worker


class FilmAssessor(Callback):
    """Fixes limits on the normal films at the start of a fit, and assesses each film of a test or predict run by them.

    The limits (:class:`~anomalib_cxr.anatomy.assessable.FilmLimits`) are the module's ``film_limits``; every checkpoint
    keeps them, and exported files of our detectors. A film is looked at as the detector sees it, at its input size and
    before any standardising, so that an exported model says the same of it.

    With several processes each looks at its share of the training films, and all get the limits of the first.

    Args:
        most: Training normals that are looked at, evenly spread over more: a fit waits no longer than for these. 0
            looks at none, and films are not assessed.

    Raises:
        ValueError: If ``most`` is below 0.
    """

    def __init__(self, most: int = 400) -> None:
        if most < 0:
            msg = f"most must be 0 or more films, not {most}."
            raise ValueError(msg)
        self.most = most
        self._found: dict[str, Assessment] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fix the limits."""
        if not getattr(trainer, "fast_dev_run", False):
            vars(pl_module)["film_limits"] = _fix_limits(trainer, pl_module, self.most)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint keep them."""
        del trainer
        keep_limits(pl_module, checkpoint)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the limits of the checkpoint that is tested, if any."""
        self._found = {}
        path = getattr(trainer, "ckpt_path", None)
        if path is not None:
            checkpoint = load_checkpoint(path, cast("Any", pl_module).checkpoint_safe_globals())
            take_limits(pl_module, checkpoint)
        if limits_of(pl_module) is None:
            logger.info(
                "Films are not assessed: these weights have no limits; a fit with %d normal films or more fixes them.",
                FEWEST,
            )

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Assess the films of a batch; the pre-processor, which may standardise them, is yet to come."""
        del trainer, args, kwargs
        limits = limits_of(pl_module)
        if limits is None or batch.image_path is None:
            return
        for path, image in zip(batch.image_path, batch.image, strict=True):
            self._found[str(path)] = limits.assess(_seen(image, pl_module))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many films are not assessable."""
        del pl_module
        shares = gather_objects({path: one.assessable for path, one in self._found.items()})
        found: dict[str, bool] = {path: one for share in shares for path, one in share.items()}
        if trainer.is_global_zero and not all(found.values()):
            logger.warning(
                "%d of %d films are not assessable, and their scores say little: see predictions.csv.",
                sum(not one for one in found.values()),
                len(found),
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test."""
        self.on_test_start(trainer, pl_module)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As for a test."""
        self.on_test_batch_start(trainer, pl_module, batch, *args, **kwargs)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test."""
        self.on_test_epoch_end(trainer, pl_module)

    def assessment_of(self, image: str) -> Assessment | None:
        """What was said of an image of the run; None where nothing was.

        Args:
            image: Path as in the batch.
        """
        return self._found.get(image)


def assessment_of(trainer: Trainer | None, image: Any) -> Assessment | None:
    """What a run says of a film.

    Args:
        trainer: Of the run.
        image: Path as in the batch.

    Returns:
        None where films are not assessed.
    """
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        if isinstance(callback, FilmAssessor):
            return callback.assessment_of(str(image))
    return None


def limits_of(pl_module: Any) -> FilmLimits | None:
    """Limits that a module has, None where it has none."""
    return cast("FilmLimits | None", getattr(pl_module, "film_limits", None))


def keep_limits(pl_module: Any, checkpoint: dict[str, Any]) -> None:
    """Put a module's limits into a checkpoint."""
    limits = limits_of(pl_module)
    if limits is not None:
        checkpoint[LIMITS_KEY] = limits.record()


def take_limits(pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Give a module the limits of a checkpoint, or none where it has none."""
    record = checkpoint.get(LIMITS_KEY)
    vars(pl_module)["film_limits"] = None if record is None else FilmLimits.from_record(record)


class _Looks(Dataset):
    """What training films look like.

    Args:
        dataset: All of them, un-augmented.
        chosen: Number and row of those that are looked at.
        pl_module: Module that sees them.
    """

    def __init__(self, dataset: Any, chosen: Sequence[tuple[int, int]], pl_module: Any) -> None:
        self.dataset, self.chosen = dataset, chosen
        self.size = pl_module.input_size

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place: int) -> TrainingLook:
        number, row = self.chosen[place]
        return look_at_training_film(_grey(self.dataset[row].image, self.size), number)


def _fix_limits(trainer: Trainer, pl_module: LightningModule, most: int) -> FilmLimits | None:
    dataset = getattr(getattr(trainer, "datamodule", None), "train_data", None)
    if most == 0 or not isinstance(dataset, AnomalibDataset):
        return None
    plain = copy.copy(dataset)
    plain.augmentations = None
    normal = np.flatnonzero(dataset.samples["label_index"].to_numpy() == 0)
    if min(most, len(normal)) < FEWEST:
        logger.info(
            "Films will not be assessed: %d normal training films say too little of what one looks like, it takes %d.",
            min(most, len(normal)),
            FEWEST,
        )
        return None
    chosen = normal[np.linspace(0, len(normal) - 1, min(most, len(normal))).round().astype(int)].tolist()
    share = list(enumerate(chosen))[trainer.global_rank :: trainer.world_size]
    workers = trainer.datamodule.num_workers  # type: ignore[attr-defined]
    loader = DataLoader(
        _Looks(plain, share, pl_module),
        batch_size=_CHUNK,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its seeds would come from the global generator otherwise
    )
    own = [look for chunk in progress(loader, "Looking at training films", len(loader)) for look in chunk]
    shares = gather_objects(own)
    looks: list[Any] = [None] * len(chosen)
    for rank, found in enumerate(shares):
        looks[rank :: len(shares)] = found
    limits = FilmLimits.fix(looks) if trainer.is_global_zero else None
    limits = gather_objects(limits)[0]
    if trainer.is_global_zero and limits is not None and limits.promised_rate > RATE:
        logger.warning(
            "%d normal training films promise that %.1f %% of new ones are called not assessable at most, not %.0f %%.",
            limits.films, 100 * limits.promised_rate, 100 * RATE,
        )  # fmt: skip
    return limits


def _seen(image: torch.Tensor, pl_module: Any) -> npt.NDArray[np.float32]:
    return _grey(image, pl_module.input_size)


def _grey(image: torch.Tensor, size: tuple[int, int] | None) -> npt.NDArray[np.float32]:
    """An image (C, H, W) in [0, 1] in grey, at the size that the detector sees."""
    grey = np.asarray(image.detach().float().mean(dim=0).cpu(), np.float32)
    return grey if size is None else antialiased_resize(grey, (int(size[0]), int(size[1])))


def _start_worker(worker: int) -> None:
    del worker
    cv2.setNumThreads(0)  # one core a worker, and OpenCV's thread pool does not survive a fork
