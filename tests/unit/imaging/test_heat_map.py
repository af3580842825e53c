"""The blend against its definition, pixel by pixel."""

import cv2
import numpy as np
import pytest

from anomalib_cxr.imaging import blend_heat_map


def test_colour_comes_in_at_the_threshold() -> None:
    heat = np.array([[0.0, 0.3, 0.5, 0.65, 1.0]])
    grey = np.full_like(heat, 0.4)
    blended = blend_heat_map(grey, heat)[0]
    assert blended[0].tolist() == blended[1].tolist() == [102, 102, 102]
    for value, pixel in zip(heat[0, 2:], blended[2:], strict=True):
        shade = np.uint8(round(max(0.0, (value - 0.35) / 0.65) * 255))
        jet = cv2.applyColorMap(np.full((1, 1), shade), cv2.COLORMAP_JET)[0, 0, ::-1] / 255
        opacity = 0.45 * min(1.0, (value - 0.35) / 0.3)
        assert pixel == pytest.approx(255 * ((1 - opacity) * 0.4 + opacity * jet), abs=0.51)
    assert blended[4][0] > blended[4][2], "the highest is red, not blue"
