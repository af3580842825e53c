"""SimCLR's projection head."""

from torch import nn


def projection_head(features: int, hidden: int | None = None, out: int = 128) -> nn.Sequential:
    """Two-layer MLP, SimCLR's head; thrown away after training.

    Args:
        features: Length of h.
        hidden: Width of the hidden layer. Defaults to the length of h.
        out: Length of the projection.

    Returns:
        Linear, ReLU, linear: without batch normalisation, so that the loss of a batch does not depend on how it is
        spread over processes.
    """
    hidden = hidden or features
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out))
