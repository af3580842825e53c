"""Training films kept in memory at the model's size, so that no step waits for a file (ours)."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Resize

from anomalib_cxr.devices import on_device
from anomalib_cxr.imaging.progress import progress

logger = logging.getLogger(__name__)

#: Most bytes that films may take of the main memory unasked, for each process, and most of a device's free memory.
HOST_BYTES, DEVICE_SHARE = 2**30, 0.5


class ResidentFilms(Dataset):
    """Films of a data set, read once, from which whole batches are cut.

    Pixels and order are those that reading the files again would give, bit for bit: films are kept as 8 or 16 bit
    where these say the same numbers (an image cache of the model's size stores them so), otherwise as float32; one
    channel where all are equal. Batches hold no masks, since films to train on are normal.

    Args:
        dataset: Anomalib's data set, whose items are the same at each reading (:func:`stays_the_same`).
        device: Where films are kept and batches come from.
        batch_size: Films read at a time.
        num_workers: Processes that read.

    Raises:
        ValueError: If films differ in size.
    """

    def __init__(
        self, dataset: Any, device: torch.device | str = "cpu", batch_size: int = 32, num_workers: int = 0
    ) -> None:
        self.collate: Any = dataset.collate_fn
        self.items: list[Any] = []
        kept: list[Tensor] = []
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
        for items in progress(loader, "Reading films", len(loader)):
            images = [_one_channel(item.image.as_subclass(Tensor)) for item in items]
            shapes = {tuple(image.shape) for image in images} | {tuple(part.shape[1:]) for part in kept[:1]}
            if len(shapes) > 1:
                msg = (
                    f"Films of {len(shapes)} sizes or channels cannot be kept in memory together: give the model a "
                    "pre-processor with a Resize to a fixed size, or set films_in_memory=False."
                )
                raise ValueError(msg)
            self.items += [_without_pixels(item) for item in items]
            kept.append(_narrow(torch.stack(images)).to(device))
        self.films = _join(kept)

    def __len__(self) -> int:
        """Number of films."""
        return len(self.items)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Cut a batch.

        Args:
            indices: B films.

        Returns:
            The data set's batch of these films, ``image`` (B, 3, H, W) in [0, 1] on the device of the films, without
            masks.
        """
        batch = self.collate([self.items[index] for index in indices])
        rows = on_device(torch.tensor(list(indices)), self.films.device)
        images = _widen(self.films.index_select(0, rows))
        batch.image = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return batch


def stays_the_same(dataset: Any) -> bool:
    """Tell whether items of a data set are the same at each reading: not augmented, at most resized."""
    return dataset.augmentations is None or isinstance(dataset.augmentations, Resize)


def has_room(films: int, image_size: tuple[int, int], device: torch.device) -> bool:
    """Tell whether grey films fit into memory beside everything else.

    Args:
        films: How many.
        image_size: Height and width in pixels.
        device: Where they would be kept; of a CUDA device's free memory half may be taken, elsewhere 1 GiB.
    """
    needed = films * image_size[0] * image_size[1] * 4
    room = DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else HOST_BYTES
    return needed <= room


def _without_pixels(item: Any) -> Any:
    """Everything about an item but its pixels."""
    light = copy.copy(item)
    light.image = torch.zeros(3, 1, 1)
    light.gt_mask = None
    return light


def _one_channel(image: Tensor) -> Tensor:
    """(1, H, W) of a grey image with its channel repeated; other images as they are."""
    grey = image[:1]
    return grey if torch.equal(grey.expand_as(image), image) else image


def _narrow(images: Tensor) -> Tensor:
    """The same numbers in 8 or 16 bits, if there are such; int16, which PyTorch can index, holds unsigned bits."""
    whole = images.mul(255).round()
    if torch.equal(whole.mul(1 / 255), images):
        return whole.to(torch.uint8)
    whole = images.mul(65535).round()
    if torch.equal(whole.mul(1 / 65535), images):
        return whole.to(torch.int32).to(torch.int16)
    return images


def _widen(films: Tensor) -> Tensor:
    """Undo :func:`_narrow`."""
    if films.dtype == torch.uint8:
        return films.float().mul(1 / 255)
    if films.dtype == torch.int16:
        return films.int().bitwise_and(0xFFFF).float().mul(1 / 65535)
    return films


def _join(kept: list[Tensor]) -> Tensor:
    """One tensor of all parts, in the widest of their types: a film that is all black fits into 8 bits."""
    return torch.cat(kept if len({part.dtype for part in kept}) == 1 else [_widen(part) for part in kept])
