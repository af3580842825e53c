"""Contact sheets against the pictures they were made of."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import find_boundaries

from anomalib_cxr.imaging import contact_sheet


def test_pictures_in_reading_order():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (20, 30), dtype=np.uint8) for _ in range(5)]
    sheet = contact_sheet(pictures, columns=3)
    assert sheet.dtype == np.uint8
    for number, picture in enumerate(pictures):
        top, left = number // 3 * 22, number % 3 * 32
        assert np.array_equal(sheet[top : top + 20, left : left + 30], np.stack([picture] * 3, axis=-1))
    assert not sheet[22:, 64:].any()  # the place of a sixth


def test_float_is_the_same_picture_as_8_bit():
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(contact_sheet([picture]), contact_sheet([picture / 255.0]))
    odd = np.array([[-1.0, 2.0], [np.nan, 0.5]])
    assert contact_sheet([odd])[:2, :2, 0].tolist() == [[0, 255], [0, 128]]


def test_mask_is_outlined_on_its_own_rim_and_nowhere_else():
    picture = np.full((40, 40), 100, np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[8:20, 10:30] = True
    plain, outlined = (
        contact_sheet([picture, picture], columns=2, masks=[None, mask])[:40].reshape(40, 2, 42, 3).swapaxes(0, 1)
    )
    assert (plain[:, :40] == 100).all()
    changed = (outlined[:, :40] != 100).any(axis=-1)
    rim = find_boundaries(mask, mode="inner")
    assert distance_transform_edt(~rim)[changed].max() < 2.5, "nothing is drawn far from the rim"
    assert distance_transform_edt(~changed)[rim].max() < 2, "and no part of the rim is left out"
    assert not changed[12:16, 15:25].any()


def test_sizes_are_fitted_to_the_tile():
    sheet = contact_sheet([np.ones((80, 40)), np.ones((10, 20))], columns=2, tile=40)
    assert sheet[:40, :20].all()  # 80 x 40 fits as 40 x 20
    assert not sheet[:40, 21:42].any()
    assert sheet[:20, 42:82].all()  # 10 x 20 fits as 20 x 40


def test_title_stands_above_its_picture():
    sheet = contact_sheet([np.zeros((40, 60)), np.zeros((40, 60))], columns=2, titles=["", "Größe"])
    assert not sheet[:, :62].any()
    height = len(sheet) - 42
    assert sheet[:height, 62:].any()
    assert not sheet[height:].any()


def test_long_titles_are_continued_and_not_cut():
    title = "abnormal 0.93 patient0001/study0001/view1_frontal.png"
    sheet = contact_sheet([np.zeros((256, 256))] * 2, columns=2, titles=[title, "normal"])
    height, one = len(sheet) - 258, len(contact_sheet([np.zeros((256, 256))], titles=["normal"])) - 258
    assert height > one
    assert not sheet[:height, 256 - 4 : 258].any(), "every letter ends before the margin"
    assert not sheet[: height - one, 258:].any(), "the shorter title stands right above its picture"
    assert sheet[height - one : height, 258:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": []}, "at least one picture"),
        ({"images": [np.zeros((4, 4))], "columns": 0}, "columns=0"),
        ({"images": [np.zeros((4, 4))], "tile": 0}, "tile=0"),
        ({"images": [np.zeros((4, 4))], "masks": []}, "1 pictures needs as many masks, got 0"),
        ({"images": [np.zeros((4, 4))], "titles": ["a", "b"]}, "as many titles, got 2"),
        ({"images": [np.zeros((3, 4, 4))]}, r"Picture 0 of a contact sheet must be \(H, W\)"),
        ({"images": [np.zeros((4, 4), int)]}, "float in .* or uint8, got int64"),
        ({"images": [np.zeros((4, 4))], "masks": [np.zeros((5, 4))]}, r"Mask 0 of a contact sheet is \(5, 4\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(**arguments)
