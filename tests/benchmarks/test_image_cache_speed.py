"""Data loading alone: files of PadChest's size, the cache of the working size, and 8-bit PNG of the working size."""

import statistics
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torchvision.transforms.v2 import Resize

from anomalib_cxr.data import RadiographDataset
from anomalib_cxr.imaging.cache import ImageCache


@pytest.mark.benchmark
@pytest.mark.parametrize("size", [256, 512, 1024])
def test_loading_from_the_cache(tmp_path, size):
    number = 8
    smooth = np.random.default_rng(0).normal(0, 1, (20, 20))
    rows = {"large": [], "small": []}
    for index in range(number):
        rng = np.random.default_rng(index)
        chest = np.asarray(Image.fromarray(np.roll(smooth, index)).resize((2000, 2000), Image.Resampling.BICUBIC))
        pixels = (2000 + 500 * chest + rng.normal(0, 20, chest.shape)).clip(0, 4095).astype(np.uint16)
        large, small = tmp_path / f"large_{index}.png", tmp_path / f"small_{index}.png"
        Image.fromarray(pixels).save(large, compress_level=1)
        Image.fromarray((pixels // 16).astype(np.uint8)).resize((size, size)).save(small)
        rows["large"].append(str(large))
        rows["small"].append(str(small))

    def dataset(paths: list[str], cache: ImageCache | None = None) -> RadiographDataset:
        table = pd.DataFrame({"image_path": paths, "label_index": 0, "split": "train", "mask_path": ""})
        table["bits"] = 12.0 if paths is rows["large"] else float("nan")
        return RadiographDataset(table, augmentations=Resize((size, size), antialias=True), cache=cache)

    cache = ImageCache(tmp_path / "cache", size)
    cache.prepare(rows["large"], [12] * number)
    ways = {
        "16-bit PNG": dataset(rows["large"]),
        "cache": dataset(rows["large"], cache),
        "8-bit PNG": dataset(rows["small"]),
    }
    times = {name: [] for name in ways}
    for _ in range(4):
        for name, data in ways.items():
            for index in range(number):
                start = time.perf_counter()
                data[index]
                times[name].append(time.perf_counter() - start)
    median = {name: 1000 * statistics.median(values) for name, values in times.items()}
    print(
        f"\n{size}: {', '.join(f'{name} {value:.2f} ms' for name, value in median.items())}; "
        f"2000x2000 16-bit PNG / cache {median['16-bit PNG'] / median['cache']:.1f}, "
        f"cache / 8-bit PNG of the working size {median['cache'] / median['8-bit PNG']:.2f}"
    )
