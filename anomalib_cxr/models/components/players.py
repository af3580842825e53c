"""Several players under one optimiser: each learns from its own loss alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def held(*modules: nn.Module) -> Iterator[None]:
    """Keep modules from learning from what is computed inside the block (ours).

    A generator's loss runs through the critic and a critic's loss through what the generator made. Where each player
    has a parameter group of one optimiser, the sum of both losses steps both as two optimisers would, if the critic is
    held while the generator's loss is computed, and the generator's images are detached for the critic's. A player that
    has no loss in a step gets no gradient, and optimisers leave parameters without gradient as they are, with their
    momenta.

    Gradients still flow *through* a held module to what came before it. Running statistics of batch normalisation are
    updated as ever.

    Args:
        *modules: Whose parameters to hold.
    """
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def at_rest(*modules: nn.Module) -> Iterator[None]:
    """Keep modules exactly as they are inside the block: :func:`held`, and in evaluation mode (ours).

    Where a stage trains one player against others that have learnt before, their running statistics have to stay, too.

    Args:
        *modules: What is used, and not trained.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    with held(*modules):
        for part, _ in modes:
            part.training = False
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training
