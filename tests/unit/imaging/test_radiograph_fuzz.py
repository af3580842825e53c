"""Whatever bytes a file holds, read_radiograph gives an image in [0, 1] or a RadiographError that names the file.

``CXR_FUZZ`` mutated files (500 unless told), and 100,000 with ``pytest -m slow tests/unit/imaging``.
"""

import io
import itertools
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from anomalib_cxr.imaging import RadiographError, read_radiograph
from anomalib_cxr.imaging.confined import read_confined

pydicom = pytest.importorskip("pydicom")
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"

HEADS = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    bytes(128) + b"DICM",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"P5 ",
    b"GIF89a",
]


def seeds() -> list[bytes]:
    """Small whole files of every kind."""
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 256, (12, 16), dtype=np.uint8)
    deep = rng.integers(0, 4096, (12, 16), dtype=np.uint16)
    files = []
    for pixels, name, options in [
        (flat, "PNG", {}),
        (deep, "PNG", {}),
        (flat, "JPEG", {}),
        (np.stack([flat] * 3, -1), "JPEG", {"progressive": True}),
        (deep, "TIFF", {}),
        (deep, "TIFF", {"compression": "tiff_lzw"}),
        (deep, "JPEG2000", {}),
        (flat, "BMP", {}),
        (flat, "WEBP", {}),
        (flat, "GIF", {}),
        (flat, "PPM", {}),
    ]:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, name, **options)
        files.append(buffer.getvalue())
    names = ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"]
    names += ["SC_rgb_jpeg_dcmtk.dcm", "JPEGLSNearLossless_08.dcm", "SC_rgb_small_odd.dcm", "image_dfl.dcm"]
    return files + [(TEST_FILES / name).read_bytes() for name in names]


SEEDS = seeds()


def check(path: Path, data: bytes) -> bool:
    """Read the bytes as a file; whether they gave an image."""
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = read_radiograph(path)
        except RadiographError as error:
            assert str(path) in str(error)  # noqa: PT017
            return False
    assert image.dtype == np.float32
    assert image.ndim == 2
    assert 0 <= image.min() <= image.max() <= 1
    return True


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """A few bytes changed, most of them in the header; now and then a piece cut out, doubled or cut off."""
    mutated = bytearray(data)
    for _ in range(rng.integers(1, 8)):
        span = len(mutated) if rng.random() < 0.3 else min(len(mutated), 1200)
        place = int(rng.integers(span))
        mutated[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
    start, length = int(rng.integers(len(mutated))), int(rng.integers(1, 64))
    action = rng.integers(10)
    if action == 0:
        del mutated[start : start + length]
    elif action == 1:
        mutated[start:start] = mutated[start : start + length]
    elif action == 2:
        del mutated[start:]
    return bytes(mutated)


@pytest.mark.parametrize("suffix", [".png", ".dcm"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(head=st.sampled_from(HEADS), body=st.binary(max_size=300))
def test_random_bytes(tmp_path, suffix, head, body):
    check(tmp_path / f"a{suffix}", head + body)


def test_mutated_files(tmp_path, monkeypatch):
    """Of those that need a process with limits, which takes half a second to start, every tenth is read here."""
    asked = itertools.count()

    def read_some(*arguments):
        if next(asked) % 10:
            raise ValueError("left to the long test")
        return read_confined(*arguments)

    monkeypatch.setattr("anomalib_cxr.imaging.radiograph.read_confined", read_some)
    rng = np.random.default_rng(1)
    number = int(os.environ.get("CXR_FUZZ", "500"))
    images = sum(check(tmp_path / "a.dcm", mutate(rng, SEEDS[i % len(SEEDS)])) for i in range(number))
    assert 0.1 < images / number < 0.9, "the mutations reach neither only the decoders nor only the header checks"


@pytest.mark.slow
def test_mutated_files_at_length(tmp_path):
    rng = np.random.default_rng(2)
    for i in range(100_000):
        check(tmp_path / "a.dcm", mutate(rng, SEEDS[i % len(SEEDS)]))
