"""The blend, the smoothing and the scale of heat maps against their definitions."""

import cv2
import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline
from scipy.ndimage import distance_transform_edt

from anomalib_cxr.imaging import blend_heat_map, heat_map_picture, smooth_heat_map
from anomalib_cxr.imaging.heat_map import colour_bar, draw_outlines, fitted_mask


def test_colour_comes_in_at_the_threshold_and_covers_more_where_the_map_is_higher() -> None:
    heat = np.array([[0.0, 0.3, 0.5, 0.65, 1.0]])
    grey = np.full_like(heat, 0.4)
    blended = blend_heat_map(grey, heat)[0]
    assert blended[0].tolist() == blended[1].tolist() == [102, 102, 102]
    for value, pixel in zip(heat[0, 2:], blended[2:], strict=True):
        strength = (value - 0.35) / 0.65
        jet = cv2.applyColorMap(np.full((1, 1), np.uint8(round(strength * 255))), cv2.COLORMAP_JET)[0, 0, ::-1] / 255
        opacity = 0.65 * strength
        assert pixel == pytest.approx(255 * ((1 - opacity) * 0.4 + opacity * jet), abs=0.51)
    assert blended[4][0] > blended[4][2], "the highest is red, not blue"


def test_tiles_become_a_surface_through_their_centres() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((4, 8))
    tiles = np.kron(values, np.ones((33, 11)))
    smooth = smooth_heat_map(tiles, (4 * 33, 8 * 11))
    assert smooth[16::33, 5::11] == pytest.approx(values)
    assert values.min() <= smooth.min() < smooth.max() <= values.max()
    step = np.abs(np.diff(tiles, axis=0)).max()
    assert np.abs(np.diff(smooth, axis=0)).max() < 0.06 * step


def test_it_is_catmull_and_roms_cubic() -> None:
    values = np.array([0.1, 0.9, 0.4, 0.5, 0.2])
    smooth = smooth_heat_map(np.kron(values, np.ones((3, 21))), (3, 105))
    slopes = np.gradient(np.r_[values[0], values, values[-1]])[1:-1]
    curve = CubicHermiteSpline(np.arange(5), values, slopes)
    place = ((np.arange(105) + 0.5) / 21 - 0.5).clip(0, 4)
    assert smooth == pytest.approx(np.tile(curve(place).clip(0.1, 0.9), (3, 1)), abs=1e-6)


def test_a_map_without_tiles_is_left_as_it_is() -> None:
    y, x = np.mgrid[:60, :80]
    heat = (np.sin(x / 9) * np.cos(y / 7)).astype(np.float32)
    heat[:20] = heat[:, :15] = -1  # an empty margin is no large tile
    assert smooth_heat_map(heat, (60, 80)) == pytest.approx(heat, abs=1e-6)
    gentle = np.linspace(0, 1, 60 * 80, dtype=np.float32).reshape(60, 80)
    assert smooth_heat_map(gentle, (60, 80)) == pytest.approx(gentle, abs=1e-6)
    larger = smooth_heat_map(heat, (180, 240))
    assert larger[1::3, 1::3] == pytest.approx(heat, abs=1e-6)


def test_empty_columns_between_tiles_stay_empty() -> None:
    heat = np.zeros((32, 64))
    heat[8:16, 8:16] = heat[16:24, 16:24] = 1
    heat[:8, 56:] = 0.5
    smooth = smooth_heat_map(heat, (32, 64))
    assert smooth[:, 30:48].max() < 0.01
    assert smooth[12, 12] > 0.95


def test_uneven_cells_and_a_constant_map() -> None:
    heat = np.repeat([[0.1, 0.2, 0.6, 0.9]], [4, 2, 2, 2], axis=1).repeat(3, axis=0)
    smooth = smooth_heat_map(heat, (3, 100))
    assert (np.diff(smooth[0]) >= -1e-6).all()
    assert (smooth[0, 0], smooth[0, -1]) == pytest.approx((0.1, 0.9))
    assert (smooth_heat_map(np.full((5, 5), 0.3), (7, 9)) == np.float32(0.3)).all()


def test_outlines_are_smooth_and_true() -> None:
    y, x = np.mgrid[:300, :300]
    distance = np.hypot(y - 150, x - 140)
    picture = np.zeros((300, 300, 3), np.uint8)
    draw_outlines(picture, distance < 100)
    drawn = picture[..., 0].astype(float)
    off = np.abs(distance - 100)
    assert off[drawn > 0].max() < 3
    # The line is as bright along a slanted part as it is along a straight one: no stairs.
    angles = np.degrees(np.arctan2(y - 150, x - 140)).astype(int)
    ink = np.array([drawn[(angles == angle) & (off < 3)].sum() for angle in range(-170, 171, 5)])
    assert ink.std() / ink.mean() < 0.2


def test_small_parts_of_a_mask_survive_and_large_ones_get_no_stairs() -> None:
    mask = np.zeros((400, 400), bool)
    mask[100:108, 200:208] = True
    assert fitted_mask(mask, (100, 100)).sum() == 4
    y, x = np.mgrid[:20, :20]
    disc = np.hypot(y - 9.5, x - 9.5) < 7
    large = fitted_mask(disc, (200, 200))
    true = np.hypot(*(np.mgrid[:200, :200] - 99.5)) < 70
    assert (large ^ true).sum() < (np.kron(disc, np.ones((10, 10))).astype(bool) ^ true).sum()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.97])
def test_the_bar_has_the_pictures_colours_and_marks_the_threshold(threshold: float) -> None:
    bar = colour_bar(201, threshold, 14)
    at = {heat: bar[round((1 - heat) * 200), 10] for heat in (0.9, 0.7, 0.1)}
    for heat, colour in at.items():
        expected = blend_heat_map(np.full((1, 1), 0.5), np.full((1, 1), heat))[0, 0]
        assert np.abs(colour.astype(int) - expected).max() <= 2
    mark = np.flatnonzero((bar[:, :20] == 255).all(axis=(1, 2)))
    assert mark.tolist() == [99, 100]
    assert (colour_bar(201, 0.31, 14) != bar).any(), "the number beside the mark is the threshold"


@pytest.mark.parametrize("side", [224, 512, 2000])
def test_a_picture_holds_film_bar_and_readable_lines_at_any_size(side: int) -> None:
    film = np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side)
    heat = np.zeros((64, 64), np.float32)
    heat[16:32, 16:32] = 0.9
    picture = heat_map_picture(film, heat, ["one", "two"], longest_side=1024)
    shown = min(side, 1024)
    grey = np.ptp(picture[:shown, :shown].astype(int), axis=2)
    assert grey[:, shown // 2 + shown // 8 :].max() <= 1, "far from the spot the film is bare"
    assert grey[3 * shown // 8, 3 * shown // 8] > 60
    below = picture[shown:, :, 0]
    lines = np.flatnonzero((below > 128).any(axis=1))
    assert lines.max() - lines.min() > 1.3 * 14, "two lines, each at least 14 pixels high"
    assert np.ptp(picture[:shown, shown + 4 :].astype(int), axis=2).max() > 100, "the bar"


def test_truth_is_yellow_and_the_bare_film_stands_beside() -> None:
    film = np.full((128, 128), 0.5, np.float32)
    mask = np.zeros((64, 64), bool)
    mask[10:30, 20:40] = True
    picture = heat_map_picture(film, np.zeros((8, 8)), [], mask=mask, beside=True)
    assert (picture[:128, :128] == 128).all()
    coloured = picture[:128, 132:260].astype(int)
    yellow = (coloured[..., 0] > 200) & (coloured[..., 2] < 80)
    rim = np.zeros((128, 128), bool)
    rim[20:60, 40:80] = True
    rim[21:59, 41:79] = False
    assert distance_transform_edt(~rim)[yellow].max() < 2.5
    assert yellow.sum() > 0.5 * rim.sum()
