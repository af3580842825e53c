"""Regions of any kind: mask files against Pillow, functions and what they must give, paths to import them by."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from anomalib_cxr.anatomy import MaskFiles, RegionFunction, RegionMasks, describe_function, load_function
from anomalib_cxr.imaging import RadiographError


@pytest.fixture
def films(tmp_path):
    """Three noisy films of 96×80, each with a mask of two discs elsewhere, at half its edge."""
    y, x = np.mgrid[:96, :80]
    masks = {}
    for number in range(3):
        rng = np.random.default_rng(number)
        film, mask = tmp_path / f"{number}.png", tmp_path / "masks" / f"{number}.png"
        mask.parent.mkdir(exist_ok=True)
        centres = rng.uniform(20, 60, (2, 2))
        inside = np.min([np.hypot(y - cy, x - cx) for cy, cx in centres], axis=0) < rng.uniform(8, 18)
        Image.fromarray(rng.integers(0, 256, (96, 80), dtype=np.uint8)).save(film)
        Image.fromarray(inside.astype(np.uint8) * 255).save(mask)
        masks[str(film)] = str(mask)
    return masks


def masks_of(films, region, size=(32, 24), **options):
    return RegionMasks.compute(list(films), size, region, num_workers=0, progress=False, **options)


@pytest.mark.parametrize("size", [(32, 24), (33, 35), (96, 80), (120, 100)])
def test_mask_files_are_shrunk_as_pillow_does_and_cut_at_half(films, size):
    found = masks_of(films, MaskFiles(films), size)
    for image, mask in zip(found.lookup(list(films))[:, 0].numpy(), films.values(), strict=True):
        covered = np.asarray(Image.open(mask).convert("F").resize(size[::-1], Image.Resampling.BILINEAR)) / 255
        certain = np.abs(covered - 0.5) > 1e-3
        assert certain.mean() > 0.97
        np.testing.assert_array_equal(image[certain], covered[certain] > 0.5)


def test_summary_says_how_large_the_regions_are(films):
    found = masks_of(films, MaskFiles(films))
    shares = [mask.mean() for mask in found.lookup(list(films)).numpy()]
    border = sum(mask[0][[0, -1]].any() or mask[0][:, [0, -1]].any() for mask in found.lookup(list(films)).numpy())
    assert found.summary() == (
        f"Region masks of 3 images at 32×24 by files: mean area {np.mean(shares):.1%} of the image, from "
        f"{min(shares):.1%} to {max(shares):.1%}, {border} touch the border."
    )
    assert "by test.bright: " in masks_of(films, RegionFunction(lambda image: image > 0.5, "test.bright")).summary()


def test_a_film_without_a_mask_is_named(films):
    first, *others = films
    for listed in ({film: films[film] for film in others}, {**films, first: ""}):
        with pytest.raises(
            RadiographError, match=r"^1 of 3 images have no region mask.* no mask is listed for .*0\.png"
        ):
            masks_of(films, MaskFiles(listed))


def test_a_mask_of_another_shape_and_an_empty_one_are_named(films):
    first, second, _ = films.values()
    Image.fromarray(np.full((80, 96), 255, np.uint8)).save(first)
    Image.fromarray(np.zeros((96, 80), np.uint8)).save(second)
    with pytest.raises(RadiographError, match=r"^2 of 3 .*0\.png: the mask is \(80, 96\) but its image .* \(96, 80\)"):
        masks_of(films, MaskFiles(films))
    with pytest.raises(RadiographError, match=r"1\.png: the region has no pixel at 32×24"):
        masks_of([list(films)[1]], MaskFiles(films))


def test_a_function_sees_the_image_as_the_model_does_and_cannot_change_it(films):
    seen = []

    def bright(image):
        seen.append(image.copy())
        mask = image > 0.5
        image[:] = 0
        return mask

    found = masks_of(films, RegionFunction(bright, "bright"))
    for film, image, mask, quality in zip(films, seen, found.lookup(list(films)), found.quality, strict=True):
        wanted = np.asarray(Image.open(film).convert("F").resize((24, 32), Image.Resampling.BILINEAR)) / 255
        np.testing.assert_allclose(image, wanted, atol=1e-5)
        np.testing.assert_array_equal(mask[0].numpy(), image > 0.5)
        assert quality.contrast < 0  # brighter inside, by the image as it was


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda image: image, r"float32 \(32, 24\)"),
        (lambda image: image.T > 0.5, r"bool \(24, 32\)"),
        (lambda image: None, "object"),
    ],
)
def test_what_is_no_mask_is_refused(films, wrong, what):
    with pytest.raises(TypeError, match=rf"wrong must give a bool mask \(32, 24\).* but gave {what}.*threshold"):
        masks_of(films, RegionFunction(wrong, "wrong"))


def test_a_function_is_asked_anew_each_time(films, tmp_path):
    """Its code may have changed, which no name of a kept file would tell."""
    for threshold in (0.4, 0.6):
        found = masks_of(
            films, RegionFunction(lambda image, at=threshold: image > at, "f"), cache_dir=tmp_path / "kept"
        )
        assert found.summary().count("f: mean area")
    assert not (tmp_path / "kept").exists()


class Above:
    def __init__(self, level):
        self.level = level

    def __call__(self, image):
        return image > self.level


def above_half(image):
    return image > 0.5


@pytest.mark.parametrize(
    "given",
    [
        above_half,
        f"{__name__}.above_half",
        Above(0.5),
        {"class_path": f"{__name__}.Above", "init_args": {"level": 0.5}},
        partial(np.less, 0.5),
    ],
)
def test_functions_come_by_themselves_or_by_their_path(given):
    image = np.random.default_rng(0).random((8, 8), np.float32)
    np.testing.assert_array_equal(load_function(given).function(image), image > 0.5)
    json.dumps(describe_function(given))  # plain data
    assert load_function(given).name


def test_what_a_checkpoint_keeps_leads_back_or_says_that_it_cannot():
    assert describe_function(above_half) == f"{__name__}.above_half"
    assert load_function(describe_function(above_half)).function is above_half
    with pytest.raises(ValueError, match=rf"'<{__name__}\.Above>' cannot be imported"):
        load_function(describe_function(Above(0.5)))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("no_such_module.f", "cannot be imported"),
        (f"{__name__}.missing", "cannot be imported"),
        ("nodots", "cannot be imported"),
        (f"{__name__}.Above", "cannot be made: .*level.*; give class_path and init_args"),
        ({"class_path": f"{__name__}.above_half", "init_args": {"level": 1}}, "takes no init_args"),
        ({"path": "x"}, "must be a path, or class_path and init_args"),
        ("math.pi", "cannot be called"),
    ],
)
def test_paths_to_nothing_are_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        load_function(given)
