"""What stands below a picture of a heat map: which film it is, and what the model says of it."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from anomalib_cxr.checks import check_choice

Names = Literal["path", "hash"]

OUTSIDE = "outside of what the model knows"


@dataclass(frozen=True)
class Caption:
    """Facts of one film.

    Attributes:
        name: File below the root of the data, see :func:`shown_name`; "" where it is unknown.
        score: Of the image.
        threshold: Above it the image is abnormal.
        abnormal: Decision, or None where there is none.
        p_value: Conformal p-value of the score, or None where it is unknown.
        outside: Whether the score is beyond those of all normal images that p-values are taken from: then the film may
            be of another population, and "abnormal" alone would say too much.
        not_assessable: Why the film should not be judged by its score, which then takes the place of the decision; ""
            where it may be, or nobody knows.
    """

    name: str
    score: float | None
    threshold: float | None
    abnormal: bool | None
    p_value: float | None = None
    outside: bool = False
    not_assessable: str = ""

    @property
    def decision(self) -> str:
        """The decision in words, "" where there is none."""
        words = [] if self.abnormal is None else ["abnormal" if self.abnormal else "normal"]
        if self.not_assessable:
            words = [f"not assessable: {self.not_assessable}"]
        return ", ".join([*words, OUTSIDE] if self.outside else words)

    def lines(self) -> list[str]:
        """Lines for a picture; what is unknown is left out.

        Examples:
            >>> Caption("a/b.png", 0.7312, 0.5, True, p_value=0.02).lines()
            ['a/b.png', 'abnormal', 'score 0.731, threshold 0.500, p 0.020']
        """
        numbers = [("score", self.score), ("threshold", self.threshold), ("p", self.p_value)]
        facts = ", ".join(f"{name} {value:.3f}" for name, value in numbers if value is not None)
        return [line for line in (self.name, self.decision, facts) if line]


def shown_name(name: str, names: Names = "path") -> str:
    """How a film is called in a picture.

    Args:
        name: Path below the root of the data, with ``/``.
        names: ``"path"`` as it is; ``"hash"`` the first ten digits of its SHA-256, for pictures that leave the house.

    Returns:
        Text of the picture.

    Raises:
        ValueError: If ``names`` is neither.

    Examples:
        >>> shown_name("pat1/IM1.dcm", "hash")
        '9041b50081'
    """
    if check_choice("names", names, Names) == "path":
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:10]
