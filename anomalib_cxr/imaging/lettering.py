"""Lines of text below or above a picture, broken where they are too long: nothing is cut off."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_MARGIN = 4
_WHITE = 255


def lettering(lines: Sequence[str], width: int, size: int) -> npt.NDArray[np.uint8]:
    """Write lines of text in white on black.

    A line that is too long is continued in the next, if possible at a blank, else behind ``/``, ``_`` or ``-``. The
    font has ASCII alone; other characters are written as Python escapes, so that two names never look the same.

    Args:
        lines: Lines of text.
        width: Of the strip in pixels.
        size: Of the letters in pixels; about two thirds of it is the height of a capital.

    Returns:
        (h, width, 3) uint8 RGB.

    Raises:
        ValueError: If a single letter is wider than the strip.

    Examples:
        >>> from anomalib_cxr.imaging import lettering
        >>> one, three = lettering(["a"], 100, 14), lettering(["pat1/series1/image_0001.png"], 100, 14)
        >>> three.shape[0] - 8 == 3 * (one.shape[0] - 8)
        True
    """
    font = ImageFont.load_default(size)
    broken = list(broken_lines(lines, width, size))
    pitch = round(1.3 * size)
    strip = Image.new("L", (width, len(broken) * pitch + 2 * _MARGIN))
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(broken):
        draw.text((_MARGIN, _MARGIN + number * pitch), line, font=font, fill=_WHITE)
    return np.repeat(np.asarray(strip)[..., None], 3, axis=2)


def broken_lines(lines: Sequence[str], width: int, size: int) -> Iterator[str]:
    """The lines as :func:`lettering` writes them.

    Args:
        lines: Lines of text.
        width: Of the strip in pixels.
        size: Of the letters in pixels.

    Yields:
        ASCII lines that fit.

    Raises:
        ValueError: If a single letter is wider than the strip.
    """
    font = ImageFont.load_default(size)
    room = width - 2 * _MARGIN
    if font.getlength("W") > room:
        msg = f"A strip of {width} pixels has no room for letters of {size} pixels: widen it."
        raise ValueError(msg)
    for line in lines:
        rest = line.encode("ascii", "backslashreplace").decode()
        while font.getlength(rest) > room:
            fits = next(count for count in range(len(rest), 0, -1) if font.getlength(rest[:count]) <= room)
            # The last place within the room after which a line may end; a blank there is dropped.
            ends = [match.end() for match in re.finditer(r" |[/_-](?=\S)", rest[: fits + 1]) if match.end() <= fits + 1]
            blanks = [end for end in ends if rest[end - 1] == " "]
            places = blanks or [end for end in ends if end <= fits] or [fits]
            yield rest[: places[-1]].rstrip()
            rest = rest[places[-1] :].lstrip()
        yield rest
