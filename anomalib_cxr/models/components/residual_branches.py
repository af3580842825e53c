"""How residual networks start when they learn from scratch in a short run."""

from torch import nn


def open_residual_branches(network: nn.Module) -> None:
    """Start every batch normalisation at scale 1, as the papers' ResNets do.

    timm starts the last one of each residual block at 0, which is good for long training from large batches. In a short
    run it keeps a network from learning: after 150 steps on ZhangLab at 128², AnatPaste's classifier told pasted from
    normal in 57 % of the training images, and in 69 % with scale 1.

    Args:
        network: Changed in place.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None and not module.weight.any():
            nn.init.ones_(module.weight)
