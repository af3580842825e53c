"""Training on a CPU keeps the memory that one step frees for the next."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

# From glibc's malloc.h, with its defaults.
_M_TRIM_THRESHOLD, _DEFAULT_TRIM = -1, 128 * 1024
_M_MMAP_MAX, _DEFAULT_MMAP_MAX = -4, 65536


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Keep freed memory in this process while the block runs (ours).

    Without it glibc gives each step's activations back to the system and asks for the same pages again in the next
    step, where every page is zeroed at its first touch: about an eighth of a ResNet-18's step at 128² and batch 64.
    The process holds its peak meanwhile, and gives it back at the end. No number changes.

    Yields:
        Whether it could be done: only glibc (Linux) has the switch.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    kept = libc is not None and hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")
    if libc is not None and kept:
        kept = bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, -1))
    try:
        yield kept
    finally:
        if libc is not None and kept:
            libc.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
            libc.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM)
            libc.malloc_trim(0)


class KeepFreedMemory(Callback):
    """Takes the steps of a training inside of :func:`freed_memory_kept`, where it is on a CPU.

    Only the steps: each asks for the same sizes again. Between them, where banks are built and images are scored, sizes
    differ, and kept memory would fall to pieces and grow.
    """

    def __init__(self) -> None:
        self._kept = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        del trainer
        if pl_module.device.type == "cpu":
            self._kept.enter_context(freed_memory_kept())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause; comes before the bank is built."""
        del trainer, pl_module
        self._kept.close()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.on_train_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        del trainer, pl_module
        self._kept.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End, too."""
        del trainer, pl_module, exception
        self._kept.close()
