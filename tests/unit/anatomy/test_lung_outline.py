import cv2
import numpy as np
import pytest

from anomalib_cxr.anatomy.lung_contour import bend_outline, closed_path
from anomalib_cxr.anatomy.lung_outline import PRIOR, Placement, outward_normals, place_outline


def circle(centre, radius, points=72):
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + centre


@pytest.mark.parametrize("clockwise", [False, True])
def test_normals_of_a_circle_point_away_from_its_centre(clockwise):
    outline = circle((5.0, -3.0), 4.0)[:: -1 if clockwise else 1]

    normals = outward_normals(outline[None])[0]

    away = (outline - (5.0, -3.0)) / 4.0
    assert np.allclose(normals / np.linalg.norm(normals, axis=1, keepdims=True), away)


def test_prior_outline_has_a_lung_on_each_side_and_the_heart_on_the_right_of_the_image():
    left, right = PRIOR.outline(100)

    assert left[:, 0].max() < 0.5 < right[:, 0].min()
    assert 0 < min(left.min(), right.min()) < max(left.max(), right.max()) < 1
    areas = [cv2.contourArea((lung * 1000).astype(np.float32)) for lung in (left, right)]
    assert areas[1] < 0.9 * areas[0]


@pytest.mark.parametrize(
    "true",
    [
        Placement((0.5, 0.45), (0.36, 0.36), (0.0, 1.0), (0.0, 0.0), 0.0),
        Placement((0.46, 0.40), (0.28, 0.30), (0.0, 1.0), (0.0, 0.0), 0.0),
        Placement((0.53, 0.50), (0.42, 0.40), (1.0, 0.0), (0.0, 0.0), 0.0),
        Placement((0.5, 0.5), (0.38, 0.32), (0.2, 0.8), (-0.15, 0.15), 0.0),
    ],
)
def test_finds_the_placement_an_image_was_drawn_with(true):
    image = np.full((256, 256), 0.8, np.float32)
    for lung in true.outline(200):
        cv2.fillPoly(image, [np.round(lung * 256).astype(np.int32)], 0.2)
    image += np.random.default_rng(0).normal(0, 0.03, image.shape).astype(np.float32)

    found = place_outline(image)

    assert np.allclose(found.centre, true.centre, atol=0.025)
    assert np.allclose(found.half_size, true.half_size, atol=0.03)
    assert np.allclose(found.outline(100), true.outline(100), atol=0.045)
    assert found.score > 0.3


def test_bends_a_circle_onto_an_ellipse():
    y, x = np.mgrid[:256, :256]
    image = np.where(((x - 128) / 50) ** 2 + ((y - 128) / 62) ** 2 < 1, 0.2, 0.8).astype(np.float32)

    bent = bend_outline(image, circle((128, 128), 56.0)[None])[0]

    radius = np.hypot((bent[:, 0] - 128) / 50, (bent[:, 1] - 128) / 62)
    assert np.abs(radius - 1).max() < 0.05
    assert np.abs(radius - 1).mean() < 0.02


def cheapest_closed_path(cost, bend_weight, max_jump):
    """One pass of dynamic programming for every position to start and end at, in plain loops."""
    points, positions = cost.shape
    best = (np.inf, None)
    for start in range(positions):
        cheapest = {start: (cost[0, start], (start,))}
        for point in range(1, points):
            cheapest = {
                here: min(
                    (value + cost[point, here] + bend_weight * (here - before) ** 2, (*path, here))
                    for before, (value, path) in cheapest.items()
                    if abs(here - before) <= max_jump
                )
                for here in range(positions)
                if any(abs(here - before) <= max_jump for before in cheapest)
            }
        for end, (value, path) in cheapest.items():
            if abs(end - start) <= max_jump:
                best = min(best, (value + bend_weight * (end - start) ** 2, path))
    return best[1]


@pytest.mark.parametrize("seed", range(5))
def test_closed_path_is_the_cheapest_one_round(seed):
    cost = np.random.default_rng(seed).random((2, 40, 7))

    found = closed_path(cost, bend_weight=0.1, max_jump=2)

    for path, costs in zip(found, cost, strict=True):
        assert tuple(path) == cheapest_closed_path(costs, 0.1, 2)
