import functools
import logging
import os
import statistics
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import label
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from anomalib_cxr.anatomy import Lungs, RegionMasks, region_masks, regions, segment_lungs
from anomalib_cxr.imaging import RadiographError, film_reader

SIZE = (64, 48)


def draw(seed, height=150, width=120):
    """Two dark ellipses on a bright ground, each time elsewhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width), 190.0)
    top, spread = rng.uniform(0.4, 0.5), rng.uniform(0.17, 0.22)
    for side in (-1, 1):
        inside = ((x / width - 0.5 - side * spread) / 0.13) ** 2 + ((y / height - top) / rng.uniform(0.25, 0.33)) ** 2
        image[inside < 1] = 60
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(5):
        Image.fromarray(draw(seed, 150 + 10 * seed)).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


def expected(path, size=SIZE, method="shape"):
    pixels = torch.from_numpy(np.asarray(Image.open(path), np.float32) / 255)[None]
    seen = v2.Resize(size, antialias=True)(pixels)[0]
    return torch.from_numpy(segment_lungs(seen.clamp(0, 1).numpy(), method))


def compute(paths, size=SIZE, method="shape", **options):
    return RegionMasks.compute(paths, size, Lungs(method), **{"num_workers": 0, "progress": False, **options})


@pytest.mark.parametrize("method", ["shape", "otsu"])
@pytest.mark.parametrize("size", [(64, 48), (33, 35)])  # the second does not fill its last byte
def test_masks_are_those_of_the_resized_images(paths, size, method):
    masks = compute(paths, size, method=method)

    found = masks.lookup(paths)

    assert found.shape == (5, 1, *size)
    assert found.dtype == torch.bool
    assert torch.equal(found[:, 0], torch.stack([expected(path, size, method) for path in paths]))
    assert len({mask.numpy().tobytes() for mask in found}) == 5  # images that differ enough to tell


def test_lookup_takes_any_order_repeats_and_spellings(paths, monkeypatch):
    masks = compute([*paths, paths[0]])
    assert len(masks) == len(masks.quality) == 5
    monkeypatch.chdir(paths[0].parent)

    found = masks.lookup([str(paths[3]), "1.png", "../images/./1.png"])

    assert torch.equal(found[:, 0], torch.stack([expected(paths[index]) for index in (3, 1, 1)]))
    assert "1.png" in masks
    assert "9.png" not in masks
    assert masks.lookup([]).shape == (0, 1, *SIZE)


def test_an_unknown_path_is_named(paths):
    with pytest.raises(KeyError, match=r"elsewhere.png: it was not among the 1 images"):
        compute(paths[:1]).lookup([paths[0], "elsewhere.png"])


def test_workers_change_nothing(paths):
    state = torch.get_rng_state()

    parallel, serial = compute(paths, num_workers=2), compute(paths)

    assert np.array_equal(parallel.packed, serial.packed)
    assert parallel.quality == serial.quality
    assert parallel.paths == serial.paths
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_workers_start_by_any_method(paths, start_method, monkeypatch):
    serial = compute(paths)
    loader = functools.partial(DataLoader, multiprocessing_context=start_method)
    monkeypatch.setattr(region_masks, "DataLoader", loader)

    assert np.array_equal(compute(paths, num_workers=2).packed, serial.packed)


def test_a_changed_file_is_segmented_anew(paths, tmp_path):
    cache = tmp_path / "cache"
    before = compute(paths, cache_dir=cache)
    stat = paths[2].stat()
    Image.fromarray(draw(99)).save(paths[2])
    os.utime(paths[2], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the time of a file says nothing

    after = compute(paths, cache_dir=cache)

    assert torch.equal(after.lookup([paths[2]])[0, 0], expected(paths[2]))
    assert [bool(row) for row in (before.packed != after.packed).any(axis=1)] == [False, False, True, False, False]


def refuse(*_):
    raise AssertionError


def test_a_second_run_reads_the_cache_only(paths, tmp_path, monkeypatch):
    cache = tmp_path / "new" / "cache"
    first = compute(paths, cache_dir=cache)
    monkeypatch.setattr(regions, "segment_lungs_with_quality", refuse)

    second = compute(paths, cache_dir=cache)

    assert np.array_equal(first.packed, second.packed)
    assert first.quality == second.quality
    assert len(list(cache.iterdir())) == 5
    for other in ({"method": "otsu"}, {"size": SIZE[::-1]}):
        with pytest.raises(AssertionError):
            compute(paths, cache_dir=cache, **other)


@pytest.mark.parametrize("length", [0, 10, 200, -1])
def test_a_truncated_cache_file_is_replaced_and_reported(paths, tmp_path, length, caplog):
    cache = tmp_path / "cache"
    first = compute(paths, cache_dir=cache)
    damaged = sorted(cache.iterdir())[1]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:length])

    with caplog.at_level(logging.WARNING):
        second = compute(paths, cache_dir=cache)

    assert np.array_equal(first.packed, second.packed)
    assert "1 damaged lung masks" in caplog.text
    with np.load(damaged) as mended:
        assert mended["packed"].shape == (SIZE[0] * SIZE[1] // 8,)


@pytest.mark.parametrize("offset", [100, -150])
def test_a_flipped_byte_in_the_cache_changes_no_mask(paths, tmp_path, offset):
    cache = tmp_path / "cache"
    first = compute(paths, cache_dir=cache)
    for stored in cache.iterdir():
        content = bytearray(stored.read_bytes())
        content[offset] ^= 0xFF
        stored.write_bytes(content)

    assert np.array_equal(compute(paths, cache_dir=cache).packed, first.packed)


def test_several_runs_share_a_cache(paths, tmp_path):
    cache, found = tmp_path / "cache", []
    threads = [threading.Thread(target=lambda: found.append(compute(paths, cache_dir=cache))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 4
    assert all(np.array_equal(masks.packed, compute(paths).packed) for masks in found)
    assert {file.suffix for file in cache.iterdir()} == {".npz"}


def test_a_failed_write_leaves_nothing_behind(paths, tmp_path, monkeypatch):
    def full_disk(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)

    with pytest.raises(OSError, match="No space left"):
        compute(paths, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_images_are_counted_and_the_first_named(paths, tmp_path, num_workers, cached):
    paths[1].write_bytes(b"no picture")
    missing = tmp_path / "missing.png"
    cache = tmp_path / "cache" if cached else None

    with pytest.raises(RadiographError, match=r"^2 of 6 images have no lung mask, the first because \S+1\.png cannot"):
        compute([*paths, missing], num_workers=num_workers, cache_dir=cache)
    with pytest.raises(RadiographError, match=r"1 of 1 images .*missing\.png cannot be read"):
        compute([missing], num_workers=num_workers, cache_dir=cache)


def test_stored_depths_are_those_of_the_table(paths, tmp_path):
    """A dark 12-bit film: without its depth it is taken for one of 10 bits, four times as bright."""
    films = [tmp_path / f"{path.stem}_deep.png" for path in paths]
    for path, film in zip(paths, films, strict=True):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 4).save(film)
    stored = [12, 12, 12, None, 10]
    levels = [2**12 - 1, 2**12 - 1, 2**12 - 1, 2**10 - 1, 2**10 - 1]

    def by_hand(film, white):
        pixels = torch.from_numpy(np.asarray(Image.open(film)).astype(np.float32) / white)[None]
        return torch.from_numpy(segment_lungs(v2.Resize(SIZE, antialias=True)(pixels)[0].numpy(), "otsu"))

    for cache in (None, tmp_path / "cache"):
        for _ in range(2):
            masks = compute(films, method="otsu", bits=stored, cache_dir=cache).lookup(films)
            for mask, film, white in zip(masks, films, levels, strict=True):
                assert torch.equal(mask[0], by_hand(film, white))
    # The depth is part of the name in the cache.
    before = len(list((tmp_path / "cache").iterdir()))
    compute(films, method="otsu", bits=[14] * 5, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == before + 5
    with pytest.raises(ValueError, match="a stored depth for each path, got 1 for 5"):
        compute(films, bits=[12])
    with pytest.raises(ValueError, match=r"two stored depths for .*, 12 and 10"):
        compute([films[0], films[0]], bits=[12, 10])


def test_bits_are_passed_on_to_the_reader(paths, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        film_reader, "read_radiograph", lambda path, bits: seen.update({path: bits}) or np.zeros(SIZE, np.float32)
    )
    compute(paths, bits=[8, 12, None, 10, 16])
    assert list(seen.values()) == [8, 12, None, 10, 16]


def test_summary_counts(paths, tmp_path):
    blank = tmp_path / "blank.png"
    Image.fromarray(np.full((80, 80), 128, np.uint8)).save(blank)
    masks = compute([*paths, blank])

    text = masks.summary()

    found = masks.lookup([*paths, blank])
    assert f"Lung masks of 6 images at 64×48 by method 'shape': mean area {found.float().mean():.1%}" in text
    assert "fallbacks used: prior in 1." in text
    areas = [sorted(np.bincount(label(mask[0])[0].ravel())[1:]) for mask in found.numpy()]
    symmetry = statistics.median(smaller / larger for smaller, larger in areas)
    assert f"two components in 100.0%, median symmetry {symmetry:.2f} (0 below 0.5), 0 touch the border" in text
    assert "fallbacks used: none" in compute(paths).summary()
    lopsided = [
        replace(quality, symmetry=s) for quality, s in zip(masks.quality, (0.9, 0.2, 0.5, 0.44, 1, 0), strict=True)
    ]
    assert "median symmetry 0.47 (3 below 0.5)" in replace(masks, quality=tuple(lopsided)).summary()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"paths": []}, "at least one image"),
        ({"size": (8, 64)}, "at least 16×16, got 8×64"),
        ({"method": "unet"}, "'unet'"),
        ({"num_workers": -1}, "num_workers must be 0 or more"),
    ],
)
def test_refuses_bad_arguments(paths, change, reason):
    with pytest.raises(ValueError, match=reason):
        compute(**{"paths": paths, "size": SIZE, **change})
