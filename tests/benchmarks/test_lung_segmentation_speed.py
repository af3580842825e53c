"""How long lung segmentation takes an image of 256×256, on one core."""

import time

import cv2
import numpy as np
import pytest

from anomalib_cxr.anatomy import segment_lungs


def least_time(function, *arguments, repeats=40):
    """Processor time of the fastest run, in milliseconds: other programs on the machine count least there."""
    taken = []
    for _ in range(repeats):
        start = time.thread_time()
        function(*arguments)
        taken.append(time.thread_time() - start)
    return 1e3 * min(taken)


@pytest.mark.benchmark
def test_segment_lungs_speed(shared):
    path = sorted((shared / "data/zhanglab/train/NORMAL").glob("*"))[0]
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    image = cv2.resize(pixels / np.float32(255), (256, 256), interpolation=cv2.INTER_AREA)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        shape, otsu = (least_time(segment_lungs, image, method) for method in ("shape", "otsu"))
    finally:
        cv2.setNumThreads(threads)
    print(f"\nlung segmentation at 256×256: shape {shape:.1f} ms, otsu {otsu:.1f} ms, ratio {shape / otsu:.2f}")
