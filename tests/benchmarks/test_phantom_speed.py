"""Films a second, with and without writing them; run with -m benchmark -s."""

import time

import cv2
import numpy as np
import pytest

from anomalib_cxr.data.phantom import LESIONS, render_phantom
from anomalib_cxr.data.phantom_cxr import PhantomCXR


@pytest.mark.benchmark
@pytest.mark.parametrize("size", [128, 256, 512])
def test_phantom_speed(size, tmp_path):
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        seconds = []
        for index in range(100):
            start = time.process_time()
            render_phantom(size, 0, index, (None, *LESIONS)[index % 6])
            seconds.append(time.process_time() - start)
        data = PhantomCXR(
            root=tmp_path, image_size=size, num_train=60, val_per_class=10, test_per_class=10, num_workers=0
        )
        start = time.process_time()
        data.prepare_data()
        written = 100 / (time.process_time() - start)
    finally:
        cv2.setNumThreads(threads)
    drawn = 1 / np.median(seconds), 1 / np.min(seconds)
    print(f"\n{size}²: {drawn[0]:.0f} films a second of one core drawn (best {drawn[1]:.0f}), {written:.0f} with files")
