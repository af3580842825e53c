"""Where distances are computed in full precision, whatever a run has allowed for its networks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from anomalib_cxr.devices import widen


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute matrix products of float32 in float32 inside the block (ours).

    Near neighbours differ in their last digits. Autocast would round features to 8 or 11 bits; so would TensorFloat-32
    and the bfloat16 that ``torch.set_float32_matmul_precision("high")`` and ``"medium"`` allow on GPUs and CPUs. There
    is nothing to switch under export, whose graph runs elsewhere.

    Args:
        device: Where is computed.
    """
    if torch.compiler.is_exporting():
        yield
        return
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    allowed = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, allowed, strict=True):
            backend.fp32_precision = precision


def in_parts(values: torch.Tensor) -> torch.Tensor:
    """Write float64 as sums of float32, to the last bit, so that any device can hold them.

    Args:
        values: Of any shape, float64, of float32's range.

    Returns:
        Tensor of shape ``(3, *shape)``, float32.
    """
    first = values.float()
    second = (values - first.double()).float()
    third = (values - first.double() - second.double()).float()
    return torch.stack((first, second, third))


def from_parts(parts: torch.Tensor) -> torch.Tensor:
    """Join what :func:`in_parts` parted.

    Args:
        parts: Of shape ``(3, *shape)``, float32.

    Returns:
        Tensor of ``shape``; float64, or float32 where the device has no other.
    """
    # One sum: OpenVINO 2026.4 fuses an addition of three constants for ever.
    return widen(parts).sum(0)
