"""read_mask: 305 drawn pixels stay 305, whatever the file is made of."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from anomalib_cxr.imaging import RadiographError
from anomalib_cxr.imaging.mask import read_mask

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def drawn() -> np.ndarray:
    """(48, 64) bool with two lesions and 305 pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = (y - 20) ** 2 + (x - 30) ** 2 < 97
    mask[40:43, 50:54] = True
    assert mask.sum() == 305
    return mask


def grey(mask: np.ndarray, white: int = 255) -> np.ndarray:
    return (mask * white).astype(np.uint8)


def palette(mask: np.ndarray, ground: tuple[int, ...], lesion: tuple[int, ...], ground_index: int = 0) -> Image.Image:
    image = Image.fromarray(np.where(mask, 1 - ground_index, ground_index).astype(np.uint8), mode="P")
    image.putpalette([*(ground, lesion)[ground_index], *(ground, lesion)[1 - ground_index]])
    return image


def rgba(colour: np.ndarray, alpha: np.ndarray | int) -> Image.Image:
    alpha = np.broadcast_to(np.uint8(alpha), colour.shape[:2])
    return Image.fromarray(np.dstack([colour, alpha]).astype(np.uint8))


def flat(*colour: int) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (HEIGHT, WIDTH, 3))


PLAIN = {
    "grey": lambda m: Image.fromarray(grey(m)),
    "ones": lambda m: Image.fromarray(grey(m, 1)),
    "half": lambda m: Image.fromarray(grey(m, 128)),
    "bits": lambda m: Image.fromarray(m),
    "red": lambda m: Image.fromarray(np.dstack([grey(m), grey(m, 0), grey(m, 0)])),
    "blue": lambda m: Image.fromarray(np.dstack([grey(m, 0), grey(m, 0), grey(m)])),
    "deep": lambda m: Image.fromarray(m.astype(np.uint16) * 65535),
    "deep ones": lambda m: Image.fromarray(m.astype(np.uint16)),
    "opaque grey": lambda m: Image.fromarray(np.dstack([grey(m), grey(m, 0) + 255]), mode="LA"),
    "opaque colour": lambda m: rgba(np.dstack([grey(m)] * 3), 255),
    "colours under no opacity": lambda m: rgba(np.dstack([grey(m)] * 3), 0),
    "palette": lambda m: palette(m, (0, 0, 0), (255, 255, 255)),
    "palette the other way": lambda m: palette(m, (0, 0, 0), (255, 255, 255), 1),
    "palette of colours": lambda m: palette(m, (0, 0, 0), (0, 90, 0), 1),
    "alpha over black": lambda m: rgba(flat(0, 0, 0), grey(m)),
    "alpha over white": lambda m: rgba(flat(255, 255, 255), grey(m)),
    "alpha over red": lambda m: rgba(flat(200, 0, 0), grey(m)),
    "faint alpha": lambda m: rgba(flat(200, 0, 0), grey(m, 77)),
    "black on transparent white": lambda m: rgba(flat(255, 255, 255) * ~m[..., None], grey(m)),
    "white on transparent black": lambda m: rgba(flat(255, 255, 255) * m[..., None], grey(m)),
    "alpha of grey": lambda m: Image.fromarray(np.dstack([grey(m, 0), grey(m)]), mode="LA"),
    "white on black between transparent margins": lambda m: rgba(
        np.dstack([grey(m)] * 3), np.where(np.arange(WIDTH) < 8, 0, 255)[None].repeat(HEIGHT, 0)
    ),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_mask_is_read_by_its_colours(tmp_path, drawn, kind):
    PLAIN[kind](drawn).save(tmp_path / "a.png")
    found = read_mask(tmp_path / "a.png")
    assert found.mask.dtype == np.uint8
    np.testing.assert_array_equal(found.mask, drawn)
    assert found.is_plain
    assert (found.levels, found.between, found.lossy) == (2, 0, False)


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".tif", ".pgm", ".webp"])
def test_other_formats(tmp_path, drawn, suffix):
    Image.fromarray(grey(drawn)).save(tmp_path / f"a{suffix}", lossless=True)
    found = read_mask(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(found.mask, drawn)
    assert found.is_plain


def test_deep_colour_keeps_its_lowest_bits(tmp_path, drawn):
    """Pillow cuts 16-bit colour to its upper 8 bits: a lesion of level 1 would be gone."""
    level = drawn.astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([level] * 3))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png").mask, drawn)
    cv2.imwrite(str(tmp_path / "b.png"), np.dstack([level * 0] * 3 + [level * 65535]))
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png").mask, drawn)


def test_one_colour_of_a_key_is_transparent(tmp_path, drawn):
    image = palette(drawn, (0, 0, 0), (0, 0, 0))
    image.save(tmp_path / "a.png", transparency=0)  # black on nothing
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png").mask, drawn)


@pytest.mark.parametrize("quality", [30, 60, 75, 90, 95, 100])
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_masks_are_cut_at_half_and_said_to_be_lossy(tmp_path, drawn, suffix, quality):
    Image.fromarray(grey(drawn)).save(tmp_path / f"a{suffix}", quality=quality)
    found = read_mask(tmp_path / f"a{suffix}")
    assert (found.mask != drawn).sum() <= (6 if quality < 60 else 1)  # above black are 500 to 900
    assert found.lossy
    assert not found.is_plain
    with Image.open(tmp_path / f"a{suffix}") as image:
        pixels = np.asarray(image.convert("RGB")).max(-1)
    assert found.levels == len(np.unique(pixels))
    assert found.between == int(((pixels > 0) & (pixels < pixels.max())).sum())


def test_soft_edges_are_cut_at_half(tmp_path, drawn):
    y, x = np.mgrid[: 8 * HEIGHT, : 8 * WIDTH] / 8
    large = ((y - 20) ** 2 + (x - 30) ** 2 < 97).astype(np.float64)
    covered = cv2.resize(large, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(drawn.astype(np.float64), (0, 0), 2)
    shifted = (drawn * 1.0 + np.roll(drawn, 1, axis=1)) / 2  # as an edge that falls between pixels
    for soft in (covered, blurred):
        Image.fromarray(np.rint(255 * soft).astype(np.uint8)).save(tmp_path / "a.png")
        Image.fromarray(soft.astype(np.float32)).save(tmp_path / "a.tif")
        for name in ("a.png", "a.tif"):
            found = read_mask(tmp_path / name)
            half = np.rint(255 * soft) >= np.rint(255 * soft).max() / 2 if name == "a.png" else soft >= soft.max() / 2
            np.testing.assert_array_equal(found.mask, half)
            assert not found.is_plain
    Image.fromarray(np.rint(200 * shifted).astype(np.uint8)).save(tmp_path / "b.png")
    found = read_mask(tmp_path / "b.png")
    np.testing.assert_array_equal(found.mask, shifted >= 0.5)
    assert (found.levels, found.between) == (3, int((shifted == 0.5).sum()))
    Image.fromarray(np.rint(255 * np.linspace(0, 1, 4096)).reshape(64, 64).astype(np.uint8)).save(tmp_path / "c.png")
    assert read_mask(tmp_path / "c.png").mask.sum() == 2048  # a slope is an edge however wide it is


def test_numbered_lesions_and_classes_are_all_drawn(tmp_path, drawn):
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[drawn], numbers[40:43, 50:54] = 7, 1
    classes = np.array([0, 30, 0, 0, 0, 0, 0, 250], np.uint8)[numbers * 1]
    classes[numbers == 1] = 40
    voc = palette(drawn, (0, 0, 0), (128, 0, 0))
    indices = np.asarray(voc).copy()
    indices[40:43, 50:54] = 2
    voc = Image.fromarray(indices, mode="P")
    voc.putpalette([0, 0, 0, 192, 0, 0, 0, 64, 0])
    for image in (Image.fromarray(numbers), Image.fromarray(numbers.astype(np.uint16)), Image.fromarray(classes), voc):
        image.save(tmp_path / "a.png")
        found = read_mask(tmp_path / "a.png")
        np.testing.assert_array_equal(found.mask, drawn)
        assert (found.levels, found.is_plain) == (3, False)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".png"])
def test_masks_are_in_stored_coordinates_as_films_are(tmp_path, drawn, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    extra = {"tiffinfo": {274: orientation}} if suffix == ".tif" else {"exif": exif}
    Image.fromarray(grey(drawn)).save(tmp_path / f"a{suffix}", quality=95, **extra)
    np.testing.assert_array_equal(read_mask(tmp_path / f"a{suffix}").mask, drawn)


def test_empty_and_full_masks(tmp_path):
    for level, expected in ((0, 0), (1, 1), (255, 1)):
        Image.fromarray(np.full((5, 7), level, np.uint8)).save(tmp_path / "a.png")
        found = read_mask(tmp_path / "a.png")
        assert (found.mask == expected).all()
        assert (found.levels, found.is_plain) == (1, True)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a.jpg")
    assert not read_mask(tmp_path / "a.jpg").mask.any()


def save_noise(path: Path, drawn: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 20, drawn.shape, dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG", quality=95)


@pytest.mark.parametrize(
    ("save", "why"),
    [
        (lambda path, _: None, "there is no such file"),
        (lambda path, _: path.mkdir(), "it is not a file"),
        (lambda path, _: path.write_bytes(b"no picture"), "it is no image of a known format"),
        (lambda path, _: path.write_bytes(bytes(128) + b"DICM"), "it is DICOM: save masks as PNG"),
        (lambda path, m: Image.fromarray(grey(m) // 2 + 90).save(path), "no pixel of it is black"),
        (lambda path, m: palette(m, (0, 0, 255), (255, 0, 0)).save(path), "no pixel of it is black"),
        (save_noise, "lossy and its highest level .* no more than noise"),
        (lambda path, m: Image.fromarray(m * np.float32(np.nan)).save(path, format="TIFF"), "no number"),
        (lambda path, m: Image.fromarray(-m.astype(np.float32)).save(path, format="TIFF"), "negative"),
    ],
)
def test_what_is_no_mask_is_refused_by_name(tmp_path, drawn, save, why):
    path = tmp_path / "a.png"
    save(path, drawn)
    with pytest.raises(RadiographError, match=rf"a\.png: the mask cannot be read: .*{why}"):
        read_mask(path)


def test_a_file_that_needs_limits_is_read_in_a_child(tmp_path, drawn):
    Image.fromarray(grey(drawn)).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    found = read_mask(tmp_path / "a.tif")
    np.testing.assert_array_equal(found.mask, drawn)
    assert found.levels > 2
