"""Dice against human lung masks, on images that no number of the method was chosen by."""

import csv
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomalib_cxr.anatomy import segment_lungs_with_quality

TUNED_ON = 38  # the images of the smallest hashes of their file names


def held_out(shared):
    with (shared / "data/montgomery/labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows.sort(key=lambda row: hashlib.sha256(Path(row["image"]).name.encode()).hexdigest())
    return rows[TUNED_ON:]


def measure(shared, rows, method="shape"):
    """Dice at 256×256 of normal and of abnormal images, and the fallbacks used."""
    dice, fallbacks = {"0": [], "1": []}, []
    for row in rows:
        image, lungs = (
            cv2.imread(str(shared / "data/montgomery" / folder / row[column]), cv2.IMREAD_GRAYSCALE) / np.float32(255)
            for folder, column in (("images", "image"), ("masks", "mask"))
        )
        image, lungs = (cv2.resize(part, (256, 256), interpolation=cv2.INTER_AREA) for part in (image, lungs))
        mask, quality = segment_lungs_with_quality(np.clip(image, 0, 1), method)
        lungs = lungs >= 0.5
        dice[row["abnormal"]].append(2 * (mask & lungs).sum() / (mask.sum() + lungs.sum()))
        fallbacks.append(quality.fallback_used)
    return np.array(dice["0"]), np.array(dice["1"]), [fallback for fallback in fallbacks if fallback]


def test_sample_of_held_out_images(shared):
    normal, abnormal, fallbacks = measure(shared, held_out(shared)[:30])

    assert normal.mean() > 0.92
    assert abnormal.mean() > 0.90
    assert not fallbacks


@pytest.mark.slow
def test_all_held_out_images(shared):
    normal, abnormal, fallbacks = measure(shared, held_out(shared))

    print(f"normal {normal.mean():.3f}, abnormal {abnormal.mean():.3f}, lowest {min(*normal, *abnormal):.3f}")
    assert len(normal) + len(abnormal) == 100
    assert normal.mean() > 0.93
    assert abnormal.mean() > 0.91
    assert not fallbacks


@pytest.mark.slow
def test_otsu_is_not_as_good(shared):
    normal, abnormal, _ = measure(shared, held_out(shared), "otsu")

    print(f"otsu: normal {normal.mean():.3f}, abnormal {abnormal.mean():.3f}")
    assert 0.75 < normal.mean() < 0.9
    assert 0.7 < abnormal.mean() < 0.88
