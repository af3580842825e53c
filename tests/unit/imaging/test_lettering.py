"""Lines of text: nothing is lost, nothing is cut off."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from anomalib_cxr.imaging import OUTSIDE, Caption, lettering, shown_name
from anomalib_cxr.imaging.lettering import broken_lines


@given(st.text(st.sampled_from("abcW/._-0 é中\U0001f600"), max_size=80), st.integers(30, 300))
def test_broken_lines_hold_every_letter_and_fit(text: str, width: int) -> None:
    lines = list(broken_lines([text], width, 14))
    escaped = text.encode("ascii", "backslashreplace").decode()
    assert "".join(lines).replace(" ", "") == escaped.replace(" ", "")
    font = ImageFont.load_default(14)
    assert max(font.getlength(line) for line in lines) <= width - 8


def test_lines_break_at_blanks_then_behind_slashes() -> None:
    assert list(broken_lines(["outside of what the model knows"], 120, 14)) == ["outside of what", "the model knows"]
    assert list(broken_lines(["patient_0001/series_0001"], 120, 14)) == ["patient_0001/", "series_0001"]


def test_no_letter_touches_the_border_of_the_strip() -> None:
    strip = lettering(["Wgjy" * 30, "x"], 256, 14)
    assert strip.shape[1:] == (256, 3)
    assert strip.any()
    for border in (strip[:2], strip[-1:], strip[:, :2], strip[:, -2:]):
        assert not border.any()


def test_names_that_differ_look_different() -> None:
    pictures = [lettering([name], 300, 14) for name in ("Größe.png", "Grüße.png", "Gro?e.png")]
    for first in range(3):
        for second in range(first):
            assert not np.array_equal(pictures[first], pictures[second])


def test_a_strip_too_narrow_for_a_letter_is_refused() -> None:
    with pytest.raises(ValueError, match="A strip of 12 pixels has no room for letters of 14 pixels"):
        lettering(["a"], 12, 14)


def test_captions_leave_out_what_is_unknown() -> None:
    assert Caption("", None, None, None).lines() == []
    assert Caption("a.png", 0.2, 0.5, False).lines() == ["a.png", "normal", "score 0.200, threshold 0.500"]
    far = Caption("a.png", 0.9, 0.5, True, p_value=0.01, outside=True)
    assert far.lines()[1] == f"abnormal, {OUTSIDE}"
    assert Caption("a.png", 0.9, None, None, outside=True).decision == OUTSIDE


def test_a_hash_names_one_film_without_its_name() -> None:
    names = [f"patient{n}/a.png" for n in range(50)] + ["\udcff.png"]
    hashes = {shown_name(name, "hash") for name in names}
    assert len(hashes) == len(names)
    assert all(len(one) == 10 and set(one) <= set("0123456789abcdef") for one in hashes)
    assert shown_name("a/b.png") == "a/b.png"
    with pytest.raises(ValueError, match="names must be one of 'path', 'hash', not 'none'"):
        shown_name("a", "none")  # type: ignore[arg-type]
