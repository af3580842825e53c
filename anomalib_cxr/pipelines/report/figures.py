"""Curves and histograms as inline SVG."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from anomalib_cxr.metrics.curves import CurveBand
from anomalib_cxr.pipelines.report.html import Element, tag

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#6b3fa0", "#444444")
"""Of Okabe and Ito (2008) for the most part: told apart by colour-blind readers."""

_NORMAL, _ABNORMAL, _UNKNOWN = COLOURS[0], COLOURS[1], "#777777"
_WIDTH, _HEIGHT = 380, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 12, 48
_BINS = 40

Numbers = npt.NDArray[np.float64]


def curve_figure(curves: Mapping[str, CurveBand], x_label: str, y_label: str, diagonal: bool = False) -> Element:
    """Draw curves over the unit square, in the order of :data:`COLOURS`; a single one with its band.

    Args:
        curves: Name and curve.
        x_label: Under the x axis.
        y_label: Beside the y axis.
        diagonal: Draw the diagonal of a model that knows nothing.

    Returns:
        ``svg`` element.
    """
    parts = _axes((0.0, 1.0), (0.0, 1.0), x_label, y_label)
    if diagonal:
        parts.append(_line([0, 1], [0, 1], (0, 1), (0, 1), "#999999", "4 4", 1))
    for index, (_, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        if len(curves) == 1 and np.isfinite(curve.low).all():
            x = np.r_[curve.x, curve.x[::-1]]
            y = np.r_[curve.low, curve.high[::-1]]
            points = _points(x, y, (0, 1), (0, 1))
            parts.append(tag("polygon", points=points, fill=colour, fill_opacity=0.18))
        parts.append(_line(curve.x, curve.y, (0, 1), (0, 1), colour, "", 2))
    return _svg(parts, f"{y_label} against {x_label}")


def histogram_figure(
    scores: Numbers, labels: Sequence[str], thresholds: Mapping[str, float], x_label: str = "raw score"
) -> Element:
    """Draw the scores of each label, in percent of the images of that label, and thresholds.

    Args:
        scores: (n,) finite scores.
        labels: (n,) "normal", "abnormal" or "".
        thresholds: Name and score of each line.
        x_label: Under the x axis.

    Returns:
        ``svg`` element.
    """
    kinds = {"normal": _NORMAL, "abnormal": _ABNORMAL, "": _UNKNOWN}
    values = np.r_[scores, list(thresholds.values())]
    low, high = float(values.min()), float(values.max())
    if not high - low > 1e-12 * max(1.0, abs(low), abs(high)):  # all scores equal
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    listed = np.array(labels, dtype=object)
    shares = {
        kind: 100 * np.histogram(scores[listed == kind], edges)[0] / (listed == kind).sum()
        for kind in kinds
        if (listed == kind).any()
    }
    top = _round_up(max(float(share.max()) for share in shares.values()))
    x_range, y_range = (low, high), (0.0, top)
    parts = _axes(x_range, y_range, x_label, "% of images")
    for kind, share in shares.items():
        corners_x = np.repeat(edges, 2)
        corners_y = np.r_[0, np.repeat(share, 2), 0]
        points = _points(corners_x, corners_y, x_range, y_range)
        parts.append(
            tag("polygon", points=points, fill=kinds[kind], fill_opacity=0.3, stroke=kinds[kind], stroke_width=1.2)
        )
    for threshold in thresholds.values():
        parts.append(_line([threshold, threshold], [0, top], x_range, y_range, "#222222", "5 3", 1.5))
    legend = {kind or "no label": kinds[kind] for kind in shares}
    parts += _legend(legend | {f"threshold: {name}": "#222222" for name in thresholds})
    return _svg(parts, f"Histogram of the {x_label} by label")


def _axes(x_range: tuple[float, float], y_range: tuple[float, float], x_label: str, y_label: str) -> list[Element]:
    """Frame, ticks and labels."""
    parts = []
    for share in np.linspace(0, 1, 5):
        x, y = _place(share, share)
        parts += [
            tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, stroke="#e6eaee"),
            tag("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, stroke="#e6eaee"),
            _label(_tick(x_range, share), x, _HEIGHT - _BOTTOM + 17, "middle", 12),
            _label(_tick(y_range, share), _LEFT - 6, y + 4, "end", 12),
        ]
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(_label(x_label, middle_x, _HEIGHT - 10, "middle", 13))
    side = _label(y_label, 0, 0, "middle", 13)
    side.set("transform", f"translate(13 {middle_y:.1f}) rotate(-90)")
    parts.append(side)
    return parts


def _tick(limits: tuple[float, float], share: float) -> str:
    low, high = limits
    return f"{low + share * (high - low):.3g}"


def _round_up(value: float) -> float:
    """The next number whose quarters are short."""
    power = 10 ** np.floor(np.log10(value))
    return float(next(step for step in power * np.array([1, 2, 4, 6, 8, 10]) if step >= value * (1 - 1e-12)))


def _legend(
    entries: Mapping[str, str],
) -> list[Element]:
    """Names in their colours, in the upper right corner."""
    parts = []
    for index, (name, colour) in enumerate(entries.items()):
        shown = name if len(name) <= 38 else f"…{name[-37:]}"
        label = _label(shown, _WIDTH - _RIGHT - 6, _TOP + 16 + 15 * index, "end", 12)
        label.set("style", f"fill:{colour};paint-order:stroke;stroke:#fff;stroke-width:3px")
        parts.append(label)
    return parts


def _label(text: str, x: float, y: float, anchor: str, size: int) -> Element:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, font_size=size)


def _line(
    x: Sequence[float] | Numbers,
    y: Sequence[float] | Numbers,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    colour: str,
    dashes: str,
    width: float,
) -> Element:
    points = _points(np.asarray(x, dtype=float), np.asarray(y, dtype=float), x_range, y_range)
    line = tag("polyline", points=points, fill="none", stroke=colour, stroke_width=width, stroke_linejoin="round")
    if dashes:
        line.set("stroke-dasharray", dashes)
    return line


def _points(x: Numbers, y: Numbers, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    width, height = x_range[1] - x_range[0], (y_range[1] - y_range[0]) or 1.0
    places = (_place((a - x_range[0]) / width, (b - y_range[0]) / height) for a, b in zip(x, y, strict=True))
    return " ".join(f"{a},{b}" for a, b in places)


def _place(x: float, y: float) -> tuple[float, float]:
    """From shares of the plot, upwards, to SVG coordinates."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    return round(_LEFT + x * width, 1), round(_HEIGHT - _BOTTOM - y * height, 1)


def _svg(parts: Sequence[Element], description: str) -> Element:
    return tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=description)
