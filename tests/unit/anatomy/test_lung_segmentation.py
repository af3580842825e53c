import cv2
import numpy as np
import pytest
from scipy import ndimage

from anomalib_cxr.anatomy import RegionQuality, segment_lungs, segment_lungs_with_quality
from anomalib_cxr.anatomy.region_quality import describe_mask


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def draw_chest(height=256, width=256, centre=(0.5, 0.47), scale=1.0, seed=0):
    """A bright trunk in dark air with two dark lungs, a heart, a spine, ribs and noise; and where the lungs are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    u, v = ((x + 0.5) / width - centre[0]) / scale, ((y + 0.5) / height - centre[1]) / scale
    image = np.full((height, width), 0.03)
    image[np.abs(u) < 0.46 - 0.05 * np.clip(-v, 0, 1)] = 0.6
    image[(np.abs(u) < 0.12) & (v < -0.36)] = 0.65
    lungs = np.zeros((height, width), dtype=bool)
    for side in (-1, 1):
        wall = ((u - side * 0.2) / 0.16) ** 2 + (np.where(v < 0, v / 0.36, v / 0.45)) ** 2 < 1
        diaphragm = v < 0.27 - 1.5 * (u - side * 0.17) ** 2 * -3
        lungs |= wall & diaphragm & (v < 0.36)
    lungs &= ((u - 0.07) / 0.13) ** 2 + ((v - 0.18) / 0.2) ** 2 > 1
    image[lungs] = 0.22
    image += 0.06 * (np.sin(v * 70 - 6 * np.abs(u)) > 0.6) * (np.abs(u) < 0.4)
    image += 0.1 * (np.abs(u) < 0.03)
    image[v > 0.4] += 0.1
    image = cv2.GaussianBlur(image, (0, 0), 0.006 * (height + width) / 2)
    return np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1).astype(np.float32), lungs


@pytest.mark.parametrize("size", [(128, 128), (224, 224), (256, 256), (512, 512), (300, 220), (256, 400)])
def test_finds_drawn_lungs_at_any_size(size):
    image, lungs = draw_chest(*size)

    mask, quality = segment_lungs_with_quality(image)

    assert mask.shape == size
    assert mask.dtype == bool
    assert dice(mask, lungs) > 0.9
    assert quality.fallback_used is None


@pytest.mark.parametrize(("centre", "scale"), [((0.45, 0.42), 0.8), ((0.54, 0.5), 0.95), ((0.5, 0.38), 0.7)])
def test_finds_drawn_lungs_anywhere(centre, scale):
    image, lungs = draw_chest(centre=centre, scale=scale, seed=1)

    assert dice(segment_lungs(image), lungs) > 0.9


def test_otsu_finds_the_dark_side():
    image, lungs = draw_chest()

    mask, quality = segment_lungs_with_quality(image, method="otsu")

    assert dice(mask, lungs) > 0.8
    assert quality.fallback_used is None
    assert quality.placement_score is None


def test_a_mirrored_image_gives_the_mirrored_mask():
    image, _ = draw_chest()

    mirrored = segment_lungs(image[:, ::-1].copy())

    assert dice(mirrored[:, ::-1], segment_lungs(image)) > 0.97


@pytest.mark.parametrize(("gain", "offset"), [(0.5, 0.0), (0.5, 0.4), (0.1, 0.7)])
@pytest.mark.parametrize("method", ["shape", "otsu"])
def test_gain_and_offset_do_not_matter(gain, offset, method):
    image, _ = draw_chest()

    assert dice(segment_lungs(gain * image + offset, method), segment_lungs(image, method)) > 0.98


@pytest.mark.parametrize("method", ["shape", "otsu"])
def test_is_deterministic_and_leaves_the_image_alone(method):
    image, _ = draw_chest()
    before = image.copy()

    masks = [segment_lungs(image, method) for _ in range(2)]

    assert np.array_equal(*masks)
    assert np.array_equal(image, before)


def test_quality_describes_the_mask():
    image, _ = draw_chest()

    mask, quality = segment_lungs_with_quality(image)

    labels, number = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = sorted(ndimage.sum_labels(mask, labels, range(1, number + 1)))
    assert quality.components == number == 2
    assert quality.area_fraction == pytest.approx(sum(areas) / mask.size)
    assert quality.symmetry == pytest.approx(areas[0] / areas[1])
    assert not quality.border_contact
    assert 0.2 < quality.contrast < 0.5  # drawn: 0.38, less ribs and blur
    assert 0.25 < quality.placement_score < 1


@pytest.mark.parametrize(("row", "column"), [(0, 5), (19, 5), (5, 0), (5, 29)])
def test_quality_tells_contact_with_each_side_of_the_image(row, column):
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:16, 4:26] = True
    assert not describe_mask(np.zeros(mask.shape), mask, None, None).border_contact

    mask[row, column] = True

    assert describe_mask(np.zeros(mask.shape), mask, None, None).border_contact


def test_quality_of_a_mask_of_one_component():
    image, mask = np.full((40, 40), 0.75), np.zeros((40, 40), dtype=bool)
    mask[10:20, 10:30] = True
    image[mask] = 0.5

    quality = describe_mask(image, mask, "prior", 0.1)

    assert quality == RegionQuality(200 / 1600, 1, 0.0, False, 0.25, "prior", 0.1)


def nothing(value):
    return np.full((64, 80), value, np.float32)


NO_LUNGS = {
    "black": nothing(0.0),
    "white": nothing(1.0),
    "noise": np.random.default_rng(0).random((256, 256)).astype(np.float32),
    "slope": np.tile(np.linspace(0, 1, 128, dtype=np.float32), (128, 1)),
    "one bright pixel": np.pad(np.ones((1, 1), np.float32), 40),
}


@pytest.mark.parametrize("name", NO_LUNGS)
def test_an_image_without_lungs_gets_the_prior_and_says_so(name):
    mask, quality = segment_lungs_with_quality(NO_LUNGS[name])

    assert quality.fallback_used == "prior"
    expected = segment_lungs(np.zeros_like(NO_LUNGS[name]))
    assert np.array_equal(mask, expected)
    assert 0.15 < mask.mean() < 0.35
    middle = mask.shape[1] // 2
    assert mask[:, : middle - 2].any()
    assert mask[:, middle + 2 :].any()


def test_otsu_falls_back_to_the_shape_and_says_so():
    image, lungs = draw_chest()
    image[60, :] = image[180, :] = 0.0  # a dark line ties the lungs to the border
    image[58:62, :] = image[178:182, :] = 0.0

    mask, quality = segment_lungs_with_quality(image, method="otsu")

    assert quality.fallback_used == "shape"
    assert dice(mask, lungs) > 0.8
    assert segment_lungs_with_quality(nothing(0.5), method="otsu")[1].fallback_used == "prior"


@pytest.mark.parametrize("method", ["shape", "otsu"])
@pytest.mark.parametrize("size", [(16, 16), (17, 300), (300, 17), (33, 31)])
def test_tiny_and_narrow_images_get_a_mask(size, method):
    image, _ = draw_chest(*size)

    mask = segment_lungs(image, method)

    assert mask.shape == size
    assert 0 < mask.mean() < 0.7


def test_an_inverted_radiograph_gets_a_mask_that_quality_tells():
    image, _ = draw_chest()

    mask, quality = segment_lungs_with_quality(1 - image)

    assert mask.any()
    normal = segment_lungs_with_quality(image)[1]
    assert quality.placement_score < 0.8 * normal.placement_score


@pytest.mark.parametrize("method", ["shape", "otsu"])
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((64, 64), np.nan, np.float32), "finite"),
        (np.pad([[np.inf]], 20), "finite"),
        (np.pad([[np.nan]], 20), "finite"),
        (np.pad([[1.5]], 20), r"\[0, 1\]"),
        (np.pad([[-0.2]], 20), r"\[0, 1\]"),
        (np.zeros((15, 64)), r"at least 16×16, got \(15, 64\)"),
        (np.zeros((0, 0)), r"at least 16×16"),
        (np.zeros((3, 64, 64)), r"shape \(H, W\)"),
        (np.zeros((64, 64), np.uint8), "uint8: divide"),
    ],
)
def test_refuses_bad_input(image, reason, method):
    with pytest.raises(ValueError, match=reason):
        segment_lungs(image, method)


def test_refuses_an_unknown_method():
    with pytest.raises(ValueError, match="method must be one of 'shape', 'otsu', not 'unet'"):
        segment_lungs(nothing(0.5), "unet")
