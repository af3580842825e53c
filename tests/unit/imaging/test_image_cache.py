"""The cache gives what decoding and resizing give, keeps it by content, and survives whatever happens to it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import Resize

from anomalib_cxr.imaging import RadiographError, read_radiograph
from anomalib_cxr.imaging.cache import ImageCache


def draw(path: Path, seed: int = 0, shape: tuple[int, int] = (61, 47)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 4096, shape, dtype=np.uint16)
    Image.fromarray(pixels).save(path)
    return path


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.suffix]


@pytest.mark.parametrize(("depth", "error"), [(16, 0.5 / 65535), (8, 0.5 / 255)])
def test_first_and_later_reads_equal_resize(tmp_path, depth, error):
    path = draw(tmp_path / "a.png")
    cache = ImageCache(tmp_path / "cache", size=(32, 24), depth=depth)
    image = torch.from_numpy(read_radiograph(path, bits=12))[None]
    expected = Resize((32, 24), antialias=True)(image)[0].numpy()
    for _ in range(2):
        pixels, shape = cache.read_with_shape(path, bits=12)
        assert pixels.dtype == np.float32
        assert shape == (61, 47)
        np.testing.assert_allclose(pixels, expected, atol=error + 1e-6)


def test_second_read_decodes_nothing(tmp_path, monkeypatch):
    path = draw(tmp_path / "a.png")
    cache = ImageCache(tmp_path / "cache", size=16)
    first = cache.read(path)
    monkeypatch.setattr("anomalib_cxr.imaging.cache.read_radiograph", None)
    assert np.array_equal(cache.read(path), first)
    assert np.array_equal(ImageCache(tmp_path / "cache", size=16).read(path), first)


def test_keyed_by_content_and_settings(tmp_path):
    path = draw(tmp_path / "a.png")
    folder = tmp_path / "cache"
    first = ImageCache(folder, size=16).read(path)
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes(path.read_bytes())
    assert np.array_equal(ImageCache(folder, size=16).read(copy), first)
    assert len(entries(folder)) == 1  # the same content is kept once, whatever its name
    for other in (ImageCache(folder, size=17), ImageCache(folder, size=16, depth=8)):
        other.read(path)
    ImageCache(folder, size=16).read(path, bits=16)
    assert len(entries(folder)) == 4
    draw(path, seed=1)
    os.utime(path, ns=(1, 1))
    changed = ImageCache(folder, size=16).read(path)
    assert np.abs(changed - first).max() > 0.01


def test_damaged_entries_and_pointers_are_made_again(tmp_path):
    path = draw(tmp_path / "a.png")
    cache = ImageCache(tmp_path / "cache", size=16)
    first = cache.read(path)
    for file in [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]:
        good = file.read_bytes()
        changed = bytearray(good)
        changed[len(good) // 2] ^= 1
        for damage in (b"", good[:-1], b"\xff" * 7, bytes(changed)):
            file.write_bytes(damage)
            assert np.array_equal(cache.read(path), first), (file.name, damage)
        file.unlink()
        assert np.array_equal(cache.read(path), first)


def test_prepare_stores_all_and_reports_what_cannot_be_read(tmp_path):
    paths = [draw(tmp_path / f"{i}.png", seed=i) for i in range(6)]
    paths[2].write_bytes(b"")
    paths[4].write_bytes(paths[4].read_bytes()[:80])
    cache = ImageCache(tmp_path / "cache", size=8)
    stale = tmp_path / "cache/ab/.left.tmp"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"x")
    os.utime(stale, (0, 0))
    failing = cache.prepare(paths, bits=[12] * 6, num_workers=2)
    assert set(failing) == {str(paths[2]), str(paths[4])}
    assert "empty" in failing[str(paths[2])]
    assert len(entries(tmp_path / "cache")) == 4
    assert not stale.exists()
    with pytest.raises(RadiographError, match="there is no such file"):
        cache.read(tmp_path / "gone.png")
    assert len(entries(tmp_path / "cache")) == 4


def read_all(folder: Path, paths: list[Path]) -> list[float]:
    cache = ImageCache(folder, size=24)
    return [float(cache.read(path, bits=12).sum()) for path in paths]


def test_several_processes_at_once(tmp_path):
    paths = [draw(tmp_path / f"{i}.png", seed=i) for i in range(12)]
    expected = read_all(tmp_path / "alone", paths)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = pool.starmap(read_all, [(tmp_path / "shared", paths)] * 3)
    assert results == [expected] * 3
    assert len(entries(tmp_path / "shared")) == 12


KILLED = """
import sys
from pathlib import Path
from anomalib_cxr.imaging.cache import ImageCache
cache = ImageCache(sys.argv[1], size=64)
print("ready", flush=True)
for path in sorted(Path(sys.argv[2]).glob("*.png")) * 1000:
    cache.read(path)
    for file in cache.folder.rglob("*.*"):
        if file.suffix == ".ptr":
            file.unlink(missing_ok=True)
    for file in cache.folder.rglob("*"):
        if file.is_file() and not file.suffix:
            file.unlink(missing_ok=True)
"""


def test_a_kill_at_any_moment_leaves_no_half_entry(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    paths = [draw(images / f"{i}.png", seed=i, shape=(300, 300)) for i in range(4)]
    expected = [ImageCache(tmp_path / "other", size=64).read(path) for path in paths]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "cache"), str(images)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file() and not file.suffix and not file.name.startswith("."):
            assert file.stat().st_size == 64 * 64 * 2 + 4  # with the check
    cache = ImageCache(tmp_path / "cache", size=64)
    for path, image in zip(paths, expected, strict=True):
        assert np.array_equal(cache.read(path), image)


def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    path = draw(tmp_path / "a.png")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        ImageCache(tmp_path / "file", size=8).read(path)
    with pytest.raises(ValueError, match="depth must be one of 8, 16, not 12"):
        ImageCache(tmp_path, size=8, depth=12)
    for size in (0, (8, -1), (8,), (8, 8, 8)):
        with pytest.raises(ValueError, match="size must be positive, one number or height and width"):
            ImageCache(tmp_path, size=size)


def test_an_entry_or_pointer_under_another_name_is_made_again(tmp_path):
    paths = [draw(tmp_path / f"{seed}.png", seed=seed) for seed in (0, 1)]
    cache = ImageCache(tmp_path / "cache", size=16)
    first = [cache.read(path) for path in paths]
    files = sorted(file for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert len(files) == 6
    for suffix in ("", ".json", ".ptr"):
        one, other = (file for file in files if file.suffix == suffix)
        other.write_bytes(one.read_bytes())
        assert all(np.array_equal(cache.read(path), kept) for path, kept in zip(paths, first, strict=True)), suffix
