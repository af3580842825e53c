"""NT-Xent, the contrastive loss of SimCLR (Chen et al., ICML 2020, equation 1), over all processes."""

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from anomalib_cxr.distributed import gather_with_gradient, world_size


class NTXentLoss(nn.Module):
    r"""Normalised temperature-scaled cross-entropy.

    For the 2n projections :math:`z` of n patches seen in two views each, with cosine similarity s:

    .. math::
        \ell_{i} = -\log \frac{\exp(s(z_i, z_{j(i)})/\tau)}{\sum_{k \ne i} \exp(s(z_i, z_k)/\tau)}

    averaged over the anchors i; j(i) is the other view of the same patch.

    Run under ``torch.distributed``, negatives come from all processes, and gradients flow back to the process that
    made them. Each process returns the mean over its own anchors; the mean over processes, which is what
    DistributedDataParallel makes of the gradient, is the loss of the whole batch. All processes must hold batches of
    the same size.

    False negatives (ours): two patches of one image that overlap show the same anatomy, yet plain SimCLR pushes them
    apart. Given ``image_index``, patches of the same image are left out of each other's denominators.

    Args:
        temperature: :math:`\tau`, positive. Defaults to ``0.5``, SimCLR's best for short training.
        gather: Whether to take negatives from all processes. Defaults to ``True``; without effect on one process.

    Raises:
        ValueError: If the temperature is not positive.

    Examples:
        >>> same = torch.ones(4, 8)
        >>> NTXentLoss()(same, same).exp().round().item()  # 2n - 1
        7.0
    """

    def __init__(self, temperature: float = 0.5, gather: bool = True) -> None:
        super().__init__()
        if not temperature > 0:
            msg = f"NT-Xent needs a positive temperature, got {temperature}."
            raise ValueError(msg)
        self.temperature = temperature
        self.gather = gather

    def forward(self, first: Tensor, second: Tensor, image_index: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            first: Projections of the first views, shape ``(n, D)``.
            second: Projections of the second views of the same patches, shape ``(n, D)``.
            image_index: Image that each patch was cut from, shape ``(n,)``, integers unique over all processes.
                Defaults to ``None``: all other patches are negatives.

        Returns:
            Mean loss over this process's 2n anchors, a scalar.

        Raises:
            ValueError: If the shapes do not agree.
        """
        if first.shape != second.shape or first.ndim != 2 or len(first) == 0:
            msg = (
                "NT-Xent needs two non-empty batches of one shape (n, D), "
                f"got {tuple(first.shape)} and {tuple(second.shape)}."
            )
            raise ValueError(msg)
        if image_index is not None and image_index.shape != first.shape[:1]:
            msg = f"NT-Xent needs one image index a patch: {len(first)} patches, indices {tuple(image_index.shape)}."
            raise ValueError(msg)

        n = len(first)
        # At least float32: under mixed precision the exponentials of many negatives overflow or vanish.
        dtype = torch.promote_types(first.dtype, torch.float32)
        first, second = F.normalize(first.to(dtype), dim=1), F.normalize(second.to(dtype), dim=1)
        all_first, all_second, start = first, second, 0
        if self.gather and world_size() > 1:
            all_first, all_second = gather_with_gradient(first), gather_with_gradient(second)
            start = dist.get_rank() * n
            if image_index is not None:
                image_index = gather_with_gradient(image_index)

        total = len(all_first)
        candidates = torch.cat((all_first, all_second))
        with torch.autocast(first.device.type, enabled=False):
            logits = torch.cat((first, second)) @ candidates.T / self.temperature
        # Global positions: view v of patch k of this process is row v * total + start + k of the candidates.
        own = torch.arange(start, start + n, device=first.device)
        anchors = torch.cat((own, own + total))
        positives = torch.cat((own + total, own))

        ignored = F.one_hot(anchors, 2 * total).bool()
        if image_index is not None:
            image = torch.cat((image_index, image_index))
            ignored |= image[anchors, None] == image[None]
            ignored.scatter_(1, positives[:, None], False)
        return F.cross_entropy(logits.masked_fill(ignored, float("-inf")), positives)
