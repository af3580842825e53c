"""Gaussian kernel density over normalised embeddings, in log space."""

import torch
from anomalib.models.components.base import DynamicBufferMixin
from torch import nn
from torch.nn import functional as F

from anomalib_cxr.models.components.full_precision import full_precision


class GaussianKernelDensity(DynamicBufferMixin, nn.Module):
    """Negative log density of an embedding under a Gaussian kernel on each reference.

    ``score(e) = −log( 1/n Σᵢ exp(−‖e/‖e‖ − rᵢ‖² / 2h²) )`` with unit references ``rᵢ``. The kernel's constant
    ``(D/2) log 2πh²`` is left out: it changes no rank, and in float32 it would eat the digits that tell images apart.
    Exact: all references are summed, in blocks, so that memory is bounded by ``block × batch``. (AnatPaste, method
    section: kernel density with bandwidth 1 over the L2-normalised backbone embeddings.) Leading dimensions are
    densities of their own, each with its own references.

    Args:
        bandwidth: Kernel's standard deviation ``h`` > 0, in units of the unit sphere.
        block: References handled at a time.

    Raises:
        ValueError: If ``bandwidth`` is not positive.
    """

    def __init__(self, bandwidth: float = 1.0, block: int = 16384) -> None:
        super().__init__()
        if bandwidth <= 0:
            msg = f"bandwidth must be positive, not {bandwidth}."
            raise ValueError(msg)
        self.bandwidth = bandwidth
        self.block = block
        self.register_buffer("references", torch.empty(0, 0))
        self.references: torch.Tensor

    def fit(self, embeddings: torch.Tensor) -> None:
        """Take the embeddings of normal images as references.

        Args:
            embeddings: (…, n, D), any norm.

        Raises:
            ValueError: If there are none, or some are not finite.
        """
        if embeddings.ndim < 2 or embeddings.numel() == 0:
            msg = f"The kernel density needs (…, n, D) embeddings of at least one image, got {tuple(embeddings.shape)}."
            raise ValueError(msg)
        if not torch.isfinite(embeddings).all():
            msg = "Embeddings of training images are not finite: training diverged, so lower the learning rate."
            raise ValueError(msg)
        self.references = F.normalize(embeddings.detach().float(), dim=-1).contiguous()

    def extend(self, embeddings: torch.Tensor) -> None:
        """Add other normal images to the references.

        Args:
            embeddings: (…, n, D), any norm.

        Raises:
            ValueError: If they do not fit the references, or some are not finite.
        """
        known = self.references
        if known.numel() == 0 or (*embeddings.shape[:-2], embeddings.shape[-1]) != (*known.shape[:-2], known.shape[-1]):
            msg = f"Embeddings {tuple(embeddings.shape)} cannot join references {tuple(known.shape)}."
            raise ValueError(msg)
        self.fit(embeddings)
        self.references = torch.cat([known, self.references], dim=-2)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Score embeddings.

        Args:
            embeddings: (…, B, D), any norm.

        Returns:
            (…, B) negative log densities without the kernel's constant; 0 at best, higher is more abnormal.

        Raises:
            RuntimeError: If :meth:`fit` has not been called.
        """
        if self.references.numel() == 0:
            msg = (
                "The reference bank is empty: train the model, or load a checkpoint that was saved after a validation."
            )
            raise RuntimeError(msg)
        # ‖q − r‖² seen from the references' mean: what all embeddings share would cost the products their last digits,
        # which are all that tells alike images apart, and most of the digits in bfloat16.
        centre = self.references.mean(dim=-2, keepdim=True)
        queries = F.normalize(embeddings.float(), dim=-1) - centre
        query_norms = queries.square().sum(dim=-1, keepdim=True) / 2
        highest, sums = [], []
        for block in self.references.split(self.block, dim=-2):
            references = block - centre
            with full_precision(queries.device):
                products = queries @ references.mT
            exponents = products - query_norms - references.square().sum(dim=-1)[..., None, :] / 2
            exponents = exponents / self.bandwidth**2
            highest.append(exponents.amax(dim=-1))
            sums.append(torch.exp(exponents - highest[-1][..., None]).sum(dim=-1))
        top = torch.stack(highest).amax(dim=0)
        total = (torch.stack(sums) * torch.exp(torch.stack(highest) - top)).sum(dim=0)
        return -(top + torch.log(total / self.references.shape[-2]))
