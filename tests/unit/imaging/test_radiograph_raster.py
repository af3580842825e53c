"""read_radiograph on PNG, JPEG, TIFF and the like."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from anomalib_cxr.imaging import MAX_PIXELS, RADIOGRAPH_SUFFIXES, RadiographError, is_radiograph, read_radiograph


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png16(path: Path, pixels: np.ndarray, before_pixels: bytes = b"") -> Path:
    """A 16-bit grey PNG, written by the specification rather than by a library."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
        + before_pixels
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def divide(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Each pixel over the highest value of the depth, one by one in Python's own arithmetic."""
    return np.array([[int(p) / (2**bits - 1) for p in row] for row in pixels]).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# --- 8 bits


def test_8bit_grey_png_is_pixel_over_255(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_radiograph(tmp_path / "a.png")
    assert image.dtype == np.float32
    assert image.flags.writeable
    np.testing.assert_array_equal(image, divide(pixels, 8))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".pgm"])
def test_equal_channels_and_grey_read_alike(tmp_path, rng, suffix):
    pixels = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / f"colour{suffix}")
    Image.fromarray(pixels).save(tmp_path / f"grey{suffix}")
    np.testing.assert_array_equal(read_radiograph(tmp_path / f"colour{suffix}"), divide(pixels, 8))
    np.testing.assert_array_equal(read_radiograph(tmp_path / f"grey{suffix}"), divide(pixels, 8))


def test_colour_turns_grey_by_the_standard_luma(tmp_path, rng):
    colour = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.png")
    luma = (colour @ np.array([0.299, 0.587, 0.114])) / 255
    np.testing.assert_allclose(read_radiograph(tmp_path / "a.png"), luma, atol=0.51 / 255)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_equals_pillow(tmp_path, rng, mode):
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), (0, 0), 4)
    Image.fromarray(smooth).convert(mode).save(tmp_path / "a.jpeg")
    expected = np.asarray(Image.open(tmp_path / "a.jpeg").convert("RGB").convert("L"))
    np.testing.assert_array_equal(read_radiograph(tmp_path / "a.jpeg"), divide(expected, 8))


def test_palette_and_one_bit(tmp_path):
    pixels = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
    palette = Image.fromarray(pixels, mode="P")
    palette.putpalette([10, 10, 10, 200, 200, 200, 255, 0, 0])
    palette.save(tmp_path / "palette.png")
    expected = np.array([[10, 200, 76], [76, 200, 10]])  # 0.299 * 255 = 76.2
    np.testing.assert_array_equal(read_radiograph(tmp_path / "palette.png"), divide(expected, 8))
    Image.fromarray(pixels > 0).save(tmp_path / "one_bit.png")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "one_bit.png"), (pixels > 0).astype(np.float32))


def test_opaque_alpha_changes_nothing_and_transparency_is_laid_over_black(tmp_path, rng):
    grey = rng.integers(0, 256, (6, 7), dtype=np.uint8)
    alpha = np.full_like(grey, 255)
    Image.fromarray(np.stack([grey, grey, grey, alpha], -1)).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "opaque.png"), divide(grey, 8))
    alpha = rng.integers(0, 256, (6, 7), dtype=np.uint8)
    Image.fromarray(np.stack([grey, alpha], -1), mode="LA").save(tmp_path / "la.png")
    np.testing.assert_allclose(read_radiograph(tmp_path / "la.png"), (grey / 255) * (alpha / 255), atol=1e-6)
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), mode="P")
    palette.putpalette([90, 90, 90, 200, 200, 200])
    palette.save(tmp_path / "key.png", transparency=1)
    np.testing.assert_allclose(read_radiograph(tmp_path / "key.png"), np.array([[90, 0], [0, 90]]) / 255, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_no_orientation_is_applied_in_any_format(tmp_path, suffix, orientation):
    pixels = (np.arange(48, dtype=np.uint8).reshape(6, 8) * 5).repeat(8, 0).repeat(8, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    extra = {"tiffinfo": {274: orientation}} if suffix == ".tif" else {"exif": exif}
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", **extra, quality=100)
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.getexif()[0x0112] == orientation
    film = read_radiograph(tmp_path / f"a{suffix}")
    assert film.flags.c_contiguous
    np.testing.assert_allclose(film, pixels / 255, atol=0.02)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_and_float_tiffs_stay_as_stored(tmp_path, rng, orientation):
    whole = rng.integers(0, 4096, (5, 7), dtype=np.uint16)
    whole[0, 0] = 4095
    floats = rng.random((5, 7), dtype=np.float32)
    for pixels, expected in ((whole, divide(whole, 12)), (floats, floats)):
        for compression in (None, "tiff_lzw"):
            Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={274: orientation}, compression=compression)
            np.testing.assert_array_equal(read_radiograph(tmp_path / "a.tif"), expected)


def test_an_orientation_that_is_none_is_passed_over(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    for orientation in (0, 9, 65535):
        Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={274: orientation})
        np.testing.assert_array_equal(read_radiograph(tmp_path / "a.tif"), divide(pixels, 8))


# --- depth


@pytest.mark.parametrize(
    ("highest", "bits"),
    [
        (1, 10),
        (255, 10),
        (256, 10),
        (1023, 10),
        (1024, 12),
        (4095, 12),
        (4096, 14),
        (16383, 14),
        (16384, 16),
        (65535, 16),
    ],
)
def test_depth_is_the_smallest_that_holds_the_highest_pixel(tmp_path, rng, highest, bits):
    pixels = rng.integers(0, highest + 1, (9, 11), dtype=np.uint16)
    pixels[4, 4] = highest
    image = read_radiograph(write_png16(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(image, divide(pixels, bits))


def test_a_12bit_image_keeps_what_8_bits_lose(tmp_path):
    """All 4096 levels come out different; Pillow's own conversion to 8 bits leaves 256 of them."""
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    image = read_radiograph(write_png16(tmp_path / "a.png", pixels))
    assert len(np.unique(image)) == 4096


def test_dark_image_needs_the_depth_told(tmp_path):
    dark = np.linspace(0, 900, 100).astype(np.uint16).reshape(10, 10)  # 12 bits, a quarter used
    path = write_png16(tmp_path / "dark.png", dark)
    np.testing.assert_array_equal(read_radiograph(path), divide(dark, 10))
    np.testing.assert_array_equal(read_radiograph(path, bits=12), divide(dark, 12))
    np.testing.assert_array_equal(read_radiograph(path, bits=np.int64(12)), divide(dark, 12))


@pytest.mark.parametrize("stretched", [False, True])
@pytest.mark.parametrize("depth", [8, 10, 12, 14])
def test_sbit_states_the_depth(tmp_path, depth, stretched):
    """Right-aligned samples as many writers leave them, or stretched as the PNG specification asks."""
    stored = np.linspace(0, 2**depth - 1, 48).astype(np.uint16).reshape(6, 8)
    pixels = np.round(stored / (2**depth - 1) * 65535).astype(np.uint16) if stretched else stored // 3
    expected = divide(pixels, 16 if stretched else depth)
    path = write_png16(tmp_path / "a.png", pixels, chunk(b"gAMA", bytes(4)) + chunk(b"sBIT", bytes([depth])))
    np.testing.assert_array_equal(read_radiograph(path), expected)
    if stretched:
        np.testing.assert_allclose(read_radiograph(path), divide(stored, depth), atol=1 / 65535)


@pytest.mark.parametrize("sbit", [bytes([0]), bytes([17]), b""])
def test_meaningless_sbit_is_not_believed(tmp_path, sbit):
    pixels = np.full((4, 4), 3000, dtype=np.uint16)
    path = write_png16(tmp_path / "a.png", pixels, chunk(b"sBIT", sbit))
    np.testing.assert_array_equal(read_radiograph(path), divide(pixels, 12))


def test_bits_are_checked_against_container_and_pixels(tmp_path):
    deep = write_png16(tmp_path / "deep.png", np.full((4, 4), 3000, dtype=np.uint16))
    with pytest.raises(RadiographError, match=r"deep\.png .* 3000, does not fit 10 bits"):
        read_radiograph(deep, bits=10)
    with pytest.raises(RadiographError, match="bits=17 is more than the 16 bits"):
        read_radiograph(deep, bits=17)
    Image.fromarray(np.full((4, 4), 100, dtype=np.uint8)).save(tmp_path / "flat.png")
    with pytest.raises(RadiographError, match="bits=12 is more than the 8 bits"):
        read_radiograph(tmp_path / "flat.png", bits=12)
    np.testing.assert_array_equal(read_radiograph(tmp_path / "flat.png", bits=7), np.float32(100) / np.float32(127))
    with pytest.raises(ValueError, match="at least 1"):
        read_radiograph(deep, bits=0)
    with pytest.raises(TypeError):
        read_radiograph(deep, bits=12.0)


def test_16bit_grey_by_other_writers(tmp_path, rng):
    pixels = rng.integers(0, 60000, (13, 17), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "pillow.png")
    cv2.imwrite(str(tmp_path / "opencv.png"), pixels)
    Image.fromarray(pixels).save(tmp_path / "pillow.tif")
    cv2.imwrite(str(tmp_path / "opencv.tif"), pixels)
    for name in ("pillow.png", "opencv.png", "pillow.tif", "opencv.tif"):
        np.testing.assert_array_equal(read_radiograph(tmp_path / name), divide(pixels, 16), err_msg=name)


def test_16bit_colour_png_keeps_its_depth(tmp_path, rng):
    grey = rng.integers(0, 4096, (9, 12), dtype=np.uint16)
    grey[0, 0] = 4095
    cv2.imwrite(str(tmp_path / "equal.png"), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(read_radiograph(tmp_path / "equal.png"), divide(grey, 12))
    colour = rng.integers(0, 65536, (9, 12, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "colour.png"), colour[..., ::-1])
    luma = (colour @ np.array([0.299, 0.587, 0.114])) / 65535
    np.testing.assert_allclose(read_radiograph(tmp_path / "colour.png"), luma, atol=1e-4)
    alpha = rng.integers(0, 65536, (9, 12), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.stack([grey, grey, grey, alpha], -1))
    expected = (grey / 4095) * (alpha / 65535)
    np.testing.assert_allclose(read_radiograph(tmp_path / "alpha.png"), expected, atol=1e-6)


def test_16bit_transparent_value_is_black(tmp_path):
    pixels = np.array([[1000, 4000], [4095, 1000]], dtype=np.uint16)
    path = write_png16(tmp_path / "a.png", pixels, chunk(b"tRNS", struct.pack(">H", 4000)))
    np.testing.assert_array_equal(read_radiograph(path), divide(np.array([[1000, 0], [4095, 1000]]), 12))


def test_formats_that_state_their_white_level(tmp_path):
    """A dark 12-bit PGM: its header says 4095, so nothing is guessed."""
    pixels = np.linspace(0, 900, 48).astype(np.uint16).reshape(6, 8)
    (tmp_path / "a.pgm").write_bytes(b"P5 8 6 4095\n" + pixels.astype(">u2").tobytes())
    np.testing.assert_allclose(read_radiograph(tmp_path / "a.pgm"), divide(pixels, 12), atol=1 / 65535)


def test_16bit_white_is_zero_tiff_is_turned_round(tmp_path, rng):
    pixels = rng.integers(0, 65536, (6, 8), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={262: 0})
    np.testing.assert_allclose(read_radiograph(tmp_path / "a.tif"), 1 - pixels / 65535, atol=1e-6)


def test_tiff_of_32_bits_and_floats(tmp_path, rng):
    whole = rng.integers(0, 4096, (6, 8)).astype(np.int32)
    whole[0, 0] = 4095
    Image.fromarray(whole).save(tmp_path / "i.tif")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "i.tif"), divide(whole, 12))
    Image.fromarray(whole * 1000).save(tmp_path / "deep.tif")
    with pytest.raises(RadiographError, match="more than 16 bits"):
        read_radiograph(tmp_path / "deep.tif")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "deep.tif", bits=30), divide(whole * 1000, 30))
    Image.fromarray(whole - 5000).save(tmp_path / "negative.tif")
    with pytest.raises(RadiographError, match="negative"):
        read_radiograph(tmp_path / "negative.tif")
    floats = rng.random((6, 8), dtype=np.float32)
    Image.fromarray(floats).save(tmp_path / "f.tif")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "f.tif"), floats)
    for wrong in (floats * 255, floats - 1, np.where(floats > 0.5, np.nan, floats).astype(np.float32)):
        Image.fromarray(wrong).save(tmp_path / "wrong.tif")
        with pytest.raises(RadiographError, match="no white level is known"):
            read_radiograph(tmp_path / "wrong.tif")
    cv2.imwrite(str(tmp_path / "colour.tif"), rng.integers(0, 65536, (6, 8, 3), dtype=np.uint16))
    with pytest.raises(RadiographError, match="colour TIFF"):
        read_radiograph(tmp_path / "colour.tif")


def test_real_padchest_like_roundtrip(tmp_path, shared):
    """A real radiograph at 12 bits in a 16-bit PNG reads as its 8-bit self to half a grey level."""
    jpeg = sorted((shared / "data/zhanglab/test/NORMAL").glob("*.jp*g"))[0]
    grey = read_radiograph(jpeg)
    path = write_png16(tmp_path / "a.png", np.rint(grey * 4095).astype(np.uint16))
    np.testing.assert_allclose(read_radiograph(path, bits=12), grey, atol=0.5 / 4095 + 1e-6)


# --- what is refused


def test_every_cut_is_refused_or_harmless(tmp_path, rng):
    """Whatever number of bytes is missing at the end: an error, or every pixel is there."""
    deep = rng.integers(0, 4096, (24, 24), dtype=np.uint16)
    deep[0, 0] = 4095
    write_png16(tmp_path / "deep.png", deep)
    cv2.imwrite(str(tmp_path / "colour.png"), np.stack([deep] * 3, -1))
    flat = cv2.GaussianBlur((deep // 16).astype(np.uint8), (0, 0), 2)
    for name in ("flat.png", "flat.jpg", "flat.bmp", "flat.tif", "flat.pgm", "flat.webp", "flat.gif"):
        Image.fromarray(flat).save(tmp_path / name)
    refused = {}
    for path in sorted(tmp_path.iterdir()):
        data, whole = path.read_bytes(), read_radiograph(path)
        cut_path = tmp_path / f"cut{path.suffix}"
        refused[path.name] = 0
        for size in [*range(0, len(data), 7), *range(max(0, len(data) - 40), len(data))]:
            cut_path.write_bytes(data[:size])
            try:
                image = read_radiograph(cut_path)
            except RadiographError as error:
                assert str(cut_path) in str(error)  # noqa: PT017
                refused[path.name] += 1
            else:
                np.testing.assert_array_equal(image, whole, err_msg=f"{path.name} cut to {size} of {len(data)}")
    assert min(refused.values()) > 10


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.dcm", "a"])
def test_empty_text_missing_and_directory(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(RadiographError, match=f"{name} .*no such file"):
        read_radiograph(path)
    path.write_bytes(b"")
    with pytest.raises(RadiographError, match=f"{name} .*empty"):
        read_radiograph(str(path))
    path.write_text("patient,label\n1,normal\n" * 20)
    with pytest.raises(RadiographError, match=f"{name} "):
        read_radiograph(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(RadiographError, match=f"{name} .*not a file"):
        read_radiograph(path)


def test_a_null_byte_in_the_path():
    with pytest.raises(RadiographError):
        read_radiograph("a\0b.png")


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
def test_too_small(tmp_path, shape):
    Image.fromarray(np.full(shape, 9, dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(RadiographError, match=r"a\.png .* too few"):
        read_radiograph(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "format_name"), [("a.png", "PNG"), ("a.tif", "TIFF"), ("a.gif", "GIF"), ("a.jpg", "MPO")]
)
def test_several_images_in_one_file(tmp_path, name, format_name):
    first, *rest = [Image.new("L", (8, 8), grey) for grey in (0, 100, 200)]
    first.save(tmp_path / name, format_name, save_all=True, append_images=rest)
    with pytest.raises(RadiographError, match="3 images"):
        read_radiograph(tmp_path / name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
@pytest.mark.parametrize("side", [100_000, 8193])
def test_huge_claims_are_refused_by_the_header(tmp_path, monkeypatch, side, limit):
    def load(self):
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # a user may have switched Pillow's own guard off
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    path = tmp_path / "a.png"
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert side**2 > MAX_PIXELS
    with pytest.raises(RadiographError, match=rf"a\.png .*({side} x {side}|{side**2}) pixels"):
        read_radiograph(path)


def test_no_postscript(tmp_path):
    """Pillow would start Ghostscript for it."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "EPS")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with pytest.raises(RadiographError, match="no image of a known format"):
        read_radiograph(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.dcm", "a.jpg", "a", "a.tif"])
def test_a_png_by_any_other_name(tmp_path, name):
    pixels = np.full((4, 4), 3000, dtype=np.uint16)
    np.testing.assert_array_equal(read_radiograph(write_png16(tmp_path / name, pixels)), divide(pixels, 12))


# --- is_radiograph


def test_is_radiograph(tmp_path):
    assert {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp"} <= RADIOGRAPH_SUFFIXES
    assert all(suffix == suffix.lower() for suffix in RADIOGRAPH_SUFFIXES)
    assert is_radiograph("missing/a.PNG")
    assert is_radiograph(Path("a.Dicom"))
    assert not is_radiograph("a.txt")
    assert not is_radiograph("missing")
    assert not is_radiograph(tmp_path)
    dicom = bytes(128) + b"DICM" + bytes(20)
    for name, content, expected in [
        ("IM000001", dicom, True),
        ("1.2.840.10008.5", dicom, True),
        ("DICOMDIR", dicom, False),
        ("README", b"DICM", False),
        ("1.2.840.10008.6", bytes(200), False),
        ("notes.txt", dicom, False),
    ]:
        (tmp_path / name).write_bytes(content)
        assert is_radiograph(tmp_path / name) is expected, name
