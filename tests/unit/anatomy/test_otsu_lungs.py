import numpy as np
import pytest
from skimage.exposure import equalize_adapthist

from anomalib_cxr.anatomy.otsu_lungs import drop_small, otsu_lungs


def neighbourhood(mask, y, x):
    return mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]


def erode(mask):
    return np.array([[neighbourhood(mask, y, x).all() for x in range(mask.shape[1])] for y in range(mask.shape[0])])


def dilate(mask):
    return np.array([[neighbourhood(mask, y, x).any() for x in range(mask.shape[1])] for y in range(mask.shape[0])])


def components(mask):
    """Sets of pixels that hang together over edges or corners, by flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    while left:
        reached, front = set(), {left.pop()}
        while front:
            y, x = front.pop()
            reached.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front |= near
        yield reached


def keep(mask, wanted):
    kept = np.zeros_like(mask)
    for component in components(mask):
        if wanted(component):
            kept[tuple(np.transpose(list(component)))] = True
    return kept


def otsu_threshold(image):
    """The centre of the histogram bin that, with all bins below it, leaves the least variance within two classes."""
    counts, edges = np.histogram(image, bins=256, range=(image.min(), image.max()))
    centres = (edges[:-1] + edges[1:]) / 2
    within = []
    for last in range(255):
        spread = 0.0
        for side in (slice(None, last + 1), slice(last + 1, None)):
            number = counts[side].sum()
            if number:
                mean = (counts[side] * centres[side]).sum() / number
                spread += (counts[side] * (centres[side] - mean) ** 2).sum()
        within.append(spread)
    return centres[int(np.argmin(within))]


def algorithm_1(image):
    height, width = image.shape
    equalised = equalize_adapthist(image, clip_limit=0.01)
    dark = dilate(erode(equalised <= otsu_threshold(equalised)))
    inner = keep(dark, lambda c: not any(y in (0, height - 1) or x in (0, width - 1) for y, x in c))
    return keep(dilate(inner), lambda c: len(c) >= 400 * height * width / 256**2)


@pytest.mark.parametrize("seed", range(6))
def test_equals_a_plain_loop_version(seed):
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(36, 60)), int(rng.integers(36, 60))
    image = np.full((height, width), 0.7)
    for _ in range(7):  # blobs of all sizes, some at the border, some touching each other
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y : y + rng.integers(1, 14), x : x + rng.integers(1, 14)] = 0.2
    image = np.clip(image + rng.normal(0, 0.08, image.shape), 0, 1)

    assert np.array_equal(otsu_lungs(image), algorithm_1(image))


def test_the_drawn_images_above_have_lungs():
    image = np.full((48, 48), 0.7)
    image[10:40, 8:20] = image[10:40, 28:40] = 0.2
    image[20, 24] = 0.2  # opened away

    mask = otsu_lungs(image)

    assert mask[10:40, 8:20].mean() > 0.8
    assert mask[10:40, 28:40].mean() > 0.8
    assert not mask[:, 23:26].any()


def published_drop_small(mask, min_area):
    """What the published code does: zero the bounding box of each small component."""
    dropped = mask.copy()
    for component in components(mask):
        if len(component) < min_area:
            ys, xs = np.transpose(list(component))
            dropped[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = False
    return dropped


def test_a_small_component_takes_no_neighbour_with_it():
    lung = np.zeros((40, 40), dtype=bool)
    lung[10:38, 4:16] = True
    mask = lung.copy()
    mask[6, 6:30] = mask[6:20, 30] = True  # a thin hook over the lung: its bounding box holds the lung's top

    assert np.array_equal(drop_small(mask, 100), lung)
    assert published_drop_small(mask, 100).sum() < 0.75 * lung.sum()


def test_components_of_exactly_the_smallest_area_stay():
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:4, 2:7] = True  # ten pixels
    ten = mask.copy()
    mask[6:9, 10:13] = True  # nine

    assert np.array_equal(drop_small(mask, 10), ten)
