"""What a job costs besides its training: the time that the model takes for an image, and the most memory held."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: How a cost is called where people read it, by its name in ``done.json``: of the test, and of the whole process.
COSTS: Mapping[str, str] = {"image_ms": "ms an image", "peak_gib": "peak GiB"}

_GIB = 2**30


class ImageTimer:
    """Seconds that a network spends in its forward pass, and the images that it sees there.

    Attributes:
        seconds: In all.
        images: In all.
    """

    def __init__(self) -> None:
        self.seconds, self.images = 0.0, 0
        self._begun: float | None = None

    @contextmanager
    def watch(self, network: nn.Module) -> Iterator[None]:
        """Count every forward pass of a network, without reading, resizing, metrics and pictures.

        Args:
            network: What takes images (B, C, H, W) as its first argument.
        """
        hooks = (network.register_forward_pre_hook(self._begin), network.register_forward_hook(self._end))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def milliseconds(self) -> float | None:
        """Mean for an image; None where none was seen."""
        return 1000 * self.seconds / self.images if self.images else None

    def _begin(self, network: nn.Module, arguments: tuple[Any, ...]) -> None:
        del network
        _wait(arguments)
        self._begun = time.perf_counter()

    def _end(self, network: nn.Module, arguments: tuple[Any, ...], found: object) -> None:
        del network, found
        if self._begun is None or not arguments or not isinstance(arguments[0], torch.Tensor):
            return
        _wait(arguments)
        self.seconds += time.perf_counter() - self._begun
        self.images += len(arguments[0])
        self._begun = None


def peak_gib() -> float:
    """Most memory that this process has held so far, resident, and on CUDA devices beside that, in GiB."""
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    on_devices = sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    return (resident + on_devices) / _GIB


def _wait(arguments: tuple[Any, ...]) -> None:
    """Have a device finish what it was given: it works while Python goes on."""
    if arguments and isinstance(arguments[0], torch.Tensor) and arguments[0].is_cuda:
        torch.cuda.synchronize(arguments[0].device)
