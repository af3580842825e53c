"""Films kept in memory: the same batches in the same order as films read anew."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from anomalib_cxr.data.dataset import RadiographDataset
from anomalib_cxr.imaging.cache import ImageCache
from anomalib_cxr.models.components import resident_films
from anomalib_cxr.models.components.resident_films import ResidentFilms, has_room, stays_the_same
from anomalib_cxr.models.components.step_order import ResidentStepDataset, StepDataset, StepSampler


@pytest.fixture
def dataset(tmp_path: Path):
    """Seven drawn films at 16 bits, resized by the data set."""
    return _dataset(tmp_path, RadiographDataset, sides=(40, 33, 64, 40, 20, 41, 50), resize=True)


def _dataset(folder: Path, kind: type, sides: tuple[int, ...], resize: bool = False, **arguments):
    rng = np.random.default_rng(0)
    for number, side in enumerate(sides):
        Image.fromarray(rng.integers(0, 2**16, (side, side)).astype(np.uint16)).save(folder / f"{number}.png")
    rows = [{"image_path": str(folder / f"{n}.png"), "label_index": 0, "split": "train", "mask_path": ""}
            for n in range(len(sides))]  # fmt: skip
    augmentations = v2.Resize((32, 24), antialias=True) if resize else None
    return kind(pd.DataFrame(rows), augmentations=augmentations, **arguments)


def _batches(stream: StepDataset, collate) -> list:
    sampler = StepSampler(stream, batch_size=4, batches_per_epoch=5, first_batch=lambda: 2)
    return list(DataLoader(stream, batch_size=4, sampler=sampler, collate_fn=collate))


def test_batches_and_order_are_those_of_films_read_anew(dataset) -> None:
    read = _batches(StepDataset(dataset, 5), dataset.collate_fn)
    kept = _batches(ResidentStepDataset(ResidentFilms(dataset, batch_size=3), 5), lambda batch: batch)
    assert len(read) == len(kept) == 5
    for expected, ours in zip(read, kept, strict=True):
        assert torch.equal(ours.image, expected.image)
        assert ours.image_path == expected.image_path
        assert torch.equal(ours.gt_label, expected.gt_label)


def test_a_cache_of_the_models_size_is_kept_in_its_own_bits(tmp_path: Path) -> None:
    for depth, dtype in ((8, torch.uint8), (16, torch.int16)):
        cache = ImageCache(tmp_path / f"cache{depth}", size=16, depth=depth)
        dataset = _dataset(tmp_path, RadiographDataset, sides=(40, 30, 20), cache=cache)
        films = ResidentFilms(dataset, batch_size=2)
        assert films.films.dtype == dtype
        assert films.films.shape == (3, 1, 16, 16)
        for index in range(3):
            assert torch.equal(films.__getitems__([index]).image[0], dataset[index].image)


def test_all_values_of_8_and_16_bits_come_back() -> None:
    for levels, dtype in ((255, torch.uint8), (65535, torch.int16)):
        numbers = np.multiply(np.arange(levels + 1), np.float32(1 / levels), dtype=np.float32)
        images = torch.from_numpy(numbers)[None, None, None]
        narrow = resident_films._narrow(images)
        assert narrow.dtype == dtype
        assert torch.equal(resident_films._widen(narrow), images)
    odd = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert resident_films._narrow(odd) is odd
    black = torch.zeros(1, 1, 4, 4)
    assert torch.equal(resident_films._join([resident_films._narrow(black), odd]), torch.cat([black, odd]))


def test_colour_stays_and_films_of_two_sizes_are_refused(tmp_path: Path) -> None:
    class Coloured(RadiographDataset):
        def __getitem__(self, index: int):
            item = super().__getitem__(index)
            item.image = item.image * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
            return item

    dataset = _dataset(tmp_path, Coloured, sides=(40, 40))
    assert torch.equal(ResidentFilms(dataset).__getitems__([1]).image[0], dataset[1].image)
    mixed = _dataset(tmp_path, RadiographDataset, sides=(40, 41))
    with pytest.raises(ValueError, match=r"2 sizes .* films_in_memory=False"):
        ResidentFilms(mixed)


def test_what_augments_does_not_stay_the_same(tmp_path: Path, dataset) -> None:
    assert stays_the_same(dataset)
    dataset.augmentations = v2.Compose([v2.RandomHorizontalFlip()])
    assert not stays_the_same(dataset)
    dataset.augmentations = None
    assert stays_the_same(dataset)
    assert has_room(1000, (256, 256), torch.device("cpu"))
    assert not has_room(2**30 // (4 * 256 * 256) + 1, (256, 256), torch.device("cpu"))
