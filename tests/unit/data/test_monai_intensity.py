"""MONAI's own intensity transforms as augmentations: their values by formula, seeds, masks, and what is refused."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image as Picture
from torchvision.transforms import v2
from torchvision.tv_tensors import Image, Mask

from anomalib_cxr.data import RadiographTable
from anomalib_cxr.data.monai_intensity import MonaiIntensity
from anomalib_cxr.models.components.pixel_preserving import refuse_moved_pixels

transforms = pytest.importorskip("monai.transforms", reason='needs pip install "anomalib-cxr[monai]"')

FILM = Image(torch.rand(1, 40, 30, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1).contiguous())


def noise(std: float = 0.05, prob: float = 1.0) -> "transforms.RandGaussianNoise":
    return transforms.RandGaussianNoise(prob=prob, std=std)


def gamma(low: float = 2.0, high: float = 2.0) -> "transforms.RandAdjustContrast":
    return transforms.RandAdjustContrast(prob=1.0, gamma=(low, high))


def test_contrast_is_the_power_of_monais_formula_and_masks_stay() -> None:
    mask = Mask(torch.eye(40)[:, :30])
    image, left = MonaiIntensity(gamma())(FILM, mask)
    film = FILM.as_subclass(torch.Tensor)
    low, high = film.min(), film.max()
    expected = ((film - low) / (high - low)) ** 2 * (high - low) + low
    torch.testing.assert_close(image.as_subclass(torch.Tensor), expected)
    assert type(image) is Image
    assert type(left) is Mask
    assert torch.equal(left, mask)


def test_noise_is_the_same_in_all_channels_of_a_grey_film_and_stays_in_range() -> None:
    image = MonaiIntensity([noise(0.02)])(FILM)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    inner = (FILM[0] > 0.2) & (FILM[0] < 0.8)
    assert (image - FILM)[0][inner].std() <= 0.03
    assert (image - FILM)[0][inner].abs().max() > 0.001
    loud = MonaiIntensity(noise(3.0))(FILM)
    assert (loud.min(), loud.max()) == (0, 1)


def test_a_coloured_image_keeps_its_colours() -> None:
    coloured = Image(torch.stack([FILM[0], FILM[0] / 2, FILM[0] / 4]))
    image = MonaiIntensity(transforms.GaussianSmooth(sigma=0.0001))(coloured)
    torch.testing.assert_close(image.as_subclass(torch.Tensor), coloured.as_subclass(torch.Tensor))


def test_random_numbers_follow_torchs_seed_in_copies_too() -> None:
    adapter = MonaiIntensity(transforms.OneOf([noise(), transforms.Compose([gamma(0.5, 3.0), noise()])]))
    found = []
    for seed, one in ((1, adapter), (1, adapter), (1, copy.deepcopy(adapter)), (2, adapter)):
        torch.manual_seed(seed)
        found.append([one(FILM), one(FILM)])
    assert not torch.equal(*found[0])
    for again in found[1:3]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], again, strict=True))
    assert not torch.equal(found[0][0], found[3][0])


@pytest.mark.parametrize(
    "moves",
    [
        lambda: transforms.RandFlip(prob=1.0),
        lambda: [noise(), transforms.Compose([noise(), transforms.RandRotate(range_x=0.1)])],
        lambda: transforms.RandGaussianNoised(keys=["image"]),
        lambda: transforms.RandCoarseShuffle(holes=2, spatial_size=5),
        lambda: v2.GaussianNoise(),
    ],
)
def test_what_may_move_pixels_is_refused(moves) -> None:
    with pytest.raises(ValueError, match=r"that leave pixels where they are, not (RandFlip|RandRotate|Rand|Gaussian)"):
        MonaiIntensity(moves())


def test_another_shape_is_refused() -> None:
    class Half(transforms.RandGaussianNoise):
        def __call__(self, img, randomize=True):
            return super().__call__(img, randomize)[:, ::2]

    with pytest.raises(ValueError, match=r"made \(1, 20, 30\) of an image \(1, 40, 30\)"):
        MonaiIntensity(Half(prob=1.0))(FILM)


def test_anatpaste_takes_them_for_what_they_are() -> None:
    refuse_moved_pixels(v2.Compose([MonaiIntensity([noise(), gamma()]), v2.Resize((64, 64))]))
    with pytest.raises(ValueError, match="may move pixels"):
        refuse_moved_pixels(v2.Compose([MonaiIntensity(noise()), v2.RandomHorizontalFlip()]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, label in (("train", "normal"), *((s, x) for s in ("val", "test") for x in ("normal", "abnormal"))):
        folder = tmp_path / split / label
        folder.mkdir(parents=True)
        film = np.random.default_rng(len(split + label)).integers(60, 200, (40, 40), dtype=np.uint8)
        Picture.fromarray(film).save(folder / "a.png")
        if label == "abnormal":
            (tmp_path / "masks" / split / label).mkdir(parents=True)
            Picture.fromarray((film > 180).astype(np.uint8) * 255).save(tmp_path / "masks" / split / label / "a.png")
    return tmp_path


def test_datamodules_augment_by_them_and_leave_masks(root: Path) -> None:
    plain, augmented = (
        RadiographTable(root, mask_dir="masks", augmentations=augmentation, num_workers=0)
        for augmentation in (None, MonaiIntensity(transforms.Compose([noise(), gamma()])))
    )
    for data in (plain, augmented):
        data.setup()
    for before, after in zip(plain.test_data, augmented.test_data, strict=True):
        assert after.image.shape == before.image.shape
        assert (after.image - before.image).abs().mean() > 0.02
        assert torch.equal(after.gt_mask, before.gt_mask)
        assert after.gt_mask.any() == bool(after.gt_label)


def test_bare_transforms_of_monai_are_refused_with_the_way_out(root: Path) -> None:
    bare = transforms.Compose([noise(), gamma()])
    for argument in ("train_augmentations", "augmentations"):
        with pytest.raises(ValueError, match=rf"^{argument} is MONAI's Compose.*wrap it as .*MonaiIntensity\(\.\.\.\)"):
            RadiographTable(root, **{argument: bare})


def test_a_configuration_makes_them() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(v2.Transform, "augmentations")
    part = {"class_path": "monai.transforms.RandGaussianNoise", "init_args": {"prob": 1.0, "std": 0.25}}
    given = {
        "class_path": "anomalib_cxr.data.monai_intensity.MonaiIntensity",
        "init_args": {"transforms": [part]},
    }
    made = parser.instantiate_classes(parser.parse_object({"augmentations": given})).augmentations
    (found,) = made.monai.transforms
    assert isinstance(found, transforms.RandGaussianNoise)
    assert (found.prob, found.std) == (1.0, 0.25)


def test_without_monai_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = noise()
    monkeypatch.setitem(sys.modules, "monai.transforms", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs MONAI: pip install "anomalib-cxr\[monai\]"'):
        MonaiIntensity(one)
