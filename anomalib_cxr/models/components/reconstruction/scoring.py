"""From the error of each pixel to a map and a score."""

from typing import Literal

from torch import Tensor, nn

from anomalib_cxr.checks import check_choice
from anomalib_cxr.models.components.normal_map import NormalMap
from anomalib_cxr.models.components.patch_search.local_search import top_q_mean

Relative = Literal["none", "difference", "standardised", "ratio"]

_DIVIDED_BY: dict[str, Literal["deviation", "mean"] | None] = {
    "difference": None,
    "standardised": "deviation",
    "ratio": "mean",
}


class ErrorScore(nn.Module):
    """The map, taken relative to that of normal films if wanted, and the mean of its highest part.

    Plain errors rank films by how many sharp edges they show, and opacities hide edges. What counts is how much more
    than usual a film errs at a place (ours).

    Args:
        relative_map: ``"none"`` (as published), ``"difference"`` to the mean normal map, ``"standardised"``, that over
            the deviation of normal maps, or ``"ratio"``, that over their mean.
        top_q: Share of the highest pixels whose mean is the score, in (0, 1].

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, relative_map: Relative = "none", top_q: float = 1.0) -> None:
        super().__init__()
        check_choice("relative_map", relative_map, Relative)
        if not 0 < top_q <= 1:
            msg = f"top_q must lie in (0, 1], not be {top_q}."
            raise ValueError(msg)
        self.top_q = top_q
        self.normal_map = None if relative_map == "none" else NormalMap(_DIVIDED_BY[relative_map])

    def fit(self, errors: Tensor) -> None:
        """Take the maps of normal films, (n, 1, H, W)."""
        if self.normal_map is not None:
            self.normal_map.fit(errors)

    def forward(self, errors: Tensor) -> tuple[Tensor, Tensor]:
        """Errors (B, 1, H, W) to scores (B,) and maps (B, 1, H, W)."""
        maps = errors if self.normal_map is None else self.normal_map(errors)
        return top_q_mean(maps, self.top_q), maps
