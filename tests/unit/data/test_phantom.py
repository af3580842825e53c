"""Drawn films: what they must be, checked on the pixels and with scikit-learn and SciPy, not with the renderer."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from warm_python import run_python

from anomalib_cxr.data.phantom import FIELD_CM, LESIONS, render_phantom

CASES = [(0, 3, None), (0, 4, None), (1, 3, None), (0, 3, "nodule"), (0, 7, "consolidation"), (0, 8, "pneumothorax")]


def digest(size, seed, index, lesion):
    film = render_phantom(size, seed, index, lesion)
    return hashlib.sha256(film.image.tobytes() + film.mask.tobytes() + film.lungs.tobytes()).hexdigest()


def near(mask, size, centimetres):
    """Pixels within so many cm of a mask, by SciPy's distance transform."""
    return ndimage.distance_transform_edt(~mask) <= centimetres * size / FIELD_CM


def test_films_depend_on_nothing_but_their_arguments():
    here = [digest(96, *case) for case in CASES]
    assert len(set(here)) == len(CASES)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import cv2; cv2.setNumThreads(1)\n"
        "from test_phantom import CASES, digest\n"
        "for case in reversed(CASES): print(digest(96, *case))"
    )
    folder = __file__.rpartition("/")[0]
    there = run_python(["-c", code, folder], Path(folder))
    assert there.returncode == 0, there.stderr
    assert there.stdout.split()[::-1] == here


@pytest.mark.parametrize("lesion", LESIONS)
def test_same_picture_at_two_sizes(lesion):
    small, large = (render_phantom(size, 3, 11, lesion) for size in (128, 384))
    averaged = large.image.reshape(128, 3, 128, 3).mean(axis=(1, 3))
    assert np.corrcoef(small.image.ravel(), averaged.ravel())[0, 1] > 0.99
    inside = large.mask.reshape(128, 3, 128, 3).mean(axis=(1, 3)) >= 0.5
    assert 2 * (inside & small.mask).sum() / (inside.sum() + small.mask.sum()) > 0.9


def test_film_that_is_not_square_shows_the_same_chest():
    square, tall = render_phantom(128, 0, 5), render_phantom((200, 128), 0, 5)
    assert tall.image.shape == (200, 128)
    centre = tall.lungs[36:164]
    assert 2 * (centre & square.lungs).sum() / (centre.sum() + square.lungs.sum()) > 0.99
    assert not tall.lungs[:36].any()


def test_anatomy():
    for index in range(5):
        film = render_phantom(128, 4, index)
        assert film.image.dtype == np.float32
        assert film.image.min() >= 0
        assert 0.7 < film.image.max() <= 1  # so that the file's highest pixel tells its depth
        assert film.attenuation.min() >= 0
        assert film.attenuation[:8, :8].max() == 0  # air above the shoulders
        assert not film.mask.any()
        labels, count = ndimage.label(film.lungs)
        assert count == 2
        (right, left), middle = (np.bincount(labels.ravel())[1:]), film.image[60:90, 60:68]
        if ndimage.center_of_mass(labels == 1)[1] > 64:
            right, left = left, right
        assert right > 1.08 * left  # the heart lies on the patient's left, the right of the film
        assert film.image[film.lungs].mean() < middle.mean() - 0.2  # lungs dark, spine and heart bright


@pytest.mark.parametrize("lesion", LESIONS)
def test_lesion_changes_the_patient_only_where_its_mask_says(lesion):
    visible = 0
    for index in range(8):
        normal, abnormal = render_phantom(128, 1, index), render_phantom(128, 1, index, lesion)
        assert abnormal.patient == normal.patient
        assert np.array_equal(abnormal.lungs, normal.lungs)
        change = abnormal.attenuation - normal.attenuation
        mask = abnormal.mask
        assert 4 < mask.sum() < 0.15 * mask.size
        far = ~near(mask, 128, 1.6)
        assert np.abs(change)[far].max() < 0.25 * np.abs(change)[mask].mean()  # a pixel at the rim of the lung
        assert not change[~near(normal.lungs, 128, 2.0)].any()
        assert (mask & near(normal.lungs, 128, 0.4)).sum() == mask.sum()
        sign = -1 if lesion == "pneumothorax" else 1
        assert sign * change[mask].mean() > 0.05
        assert np.abs(change)[mask].mean() > 3 * np.abs(change)[near(mask, 128, 1.6) & ~mask].mean()
        visible += abs(abnormal.image[mask].mean() - normal.image[mask].mean()) > 0.03
    assert visible >= 6, f"only {visible} of 8 lesions of kind {lesion} change the grey level by more than 0.03"


@pytest.mark.parametrize("lesion", LESIONS)
def test_smallest_film_keeps_its_lesion(lesion):
    assert all(render_phantom(32, 0, index, lesion).mask.any() for index in range(12))


@pytest.mark.parametrize(("count", "limit"), [(150, 0.64), pytest.param(500, 0.62, marks=pytest.mark.slow)])
def test_no_shortcut_tells_lesions_from_normals(count, limit):
    """Statistics of the whole image must not do what a detector is for.

    The standard error of an AUROC of 0.5 is 0.033 at 150 + 150 films and 0.018 at 500 + 500.
    """
    mean_image = np.mean([render_phantom(128, 0, index).image for index in range(100)], axis=0)
    normal = np.stack([render_phantom(128, 0, 1000 + index).image for index in range(count)])
    abnormal = np.stack([render_phantom(128, 0, 2000 + i, LESIONS[i % len(LESIONS)]).image for i in range(count)])
    shortcuts = {
        "mean": lambda x: x.mean(),
        "standard deviation": lambda x: x.std(),
        "distance to the mean image": lambda x: np.linalg.norm(x - mean_image),
        "largest deviation": lambda x: np.abs(x - mean_image).max(),
    }
    lines, worst = [], 0.0
    for name, statistic in shortcuts.items():
        scores = [np.array([statistic(x) for x in films]) for films in (normal, abnormal)]

        def auroc(positive, negative=scores[0]):
            value = roc_auc_score([0] * len(negative) + [1] * len(positive), np.r_[negative, positive])
            return max(value, 1 - value)

        kinds = ", ".join(f"{kind} {auroc(scores[1][i :: len(LESIONS)]):.2f}" for i, kind in enumerate(LESIONS))
        lines.append(f"{name}: all {auroc(scores[1]):.3f} ({kinds})")
        worst = max(worst, auroc(scores[1]))
    print("\n" + "\n".join(lines))
    assert worst < limit, "\n".join(lines)


def test_nodules_stand_out_from_their_surroundings():
    """What a reader sees: the nodule against the lung around it, in grey levels of the film and in its noise."""
    contrasts = []
    for index in range(30):
        film = render_phantom(256, 2, index, "nodule")
        ring = near(film.mask, 256, 1.0) & ~near(film.mask, 256, 0.3) & film.lungs
        smooth = cv2.GaussianBlur(film.image, (0, 0), 2)
        contrasts.append((smooth[film.mask].mean() - smooth[ring].mean()) / smooth[ring].std())
    assert np.mean(np.array(contrasts) > 0.5) > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((31, 0, 0), "at least 32 pixels, got 31"),
        (((64, 16), 0, 0), r"at least 32 pixels, got \(64, 16\)"),
        (((64, 64, 3), 0, 0), "one or two integers"),
        ((64.0, 0, 0), "one or two integers"),
        ((64, -1, 0), "non-negative, got seed=-1"),
        ((64, 0, -2), "index=-2"),
        ((64, 0, 0, "fracture"), "'fracture': choose from nodule, consolidation, effusion, cardiomegaly, pneumothorax"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_phantom(*arguments)
