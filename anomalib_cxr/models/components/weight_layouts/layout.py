"""What a layout of weights is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

#: Weights by name.
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class WeightLayout:
    """A way of naming an encoder's weights, and what the weights that come so were trained with (ours).

    Attributes:
        name: What messages call it.
        recognise: Whether weights are named this way, seen by their names and shapes.
        to_timm: The encoder's weights by timm's names; what is no part of it, such as a head or a text tower, is left
            out.
        backbone: timm model that the published weights are of; None where there are many.
        mean: Mean that the published weights take grey values to have, in the units of ``input_range``; None is what
            timm knows of the model.
        std: Their standard deviation; None is what timm knows.
        input_range: What the published weights take black and white to be.
    """

    name: str
    recognise: Callable[[State], bool]
    to_timm: Callable[[State], dict[str, Tensor]]
    backbone: str | None = None
    mean: float | None = None
    std: float | None = None
    input_range: tuple[float, float] = (0.0, 1.0)


def renamed(name: str, words: Iterable[tuple[str, str]]) -> str:
    """Replace words of a name, one after the other.

    Examples:
        >>> renamed("encoder.layer.3.norm1.bias", [("encoder.layer.", "blocks.")])
        'blocks.3.norm1.bias'
    """
    for theirs, ours in words:
        name = name.replace(theirs, ours)
    return name
