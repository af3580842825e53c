"""A child process with limits, for files whose headers do not bound what a decoder will do with them.

Ordinary files never come here: whoever decodes walks over their headers first and calls :func:`need_limits` only where
these leave open how long, or in how much memory.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt

SECONDS = 4
"""Processor time of the child; with what its parent does, a file is decided within five."""

BYTES = 2**30
"""Memory of the child beyond that of its modules."""

_WALL_SECONDS = 300.0  # where the platform has no limit of processor time, and for a child that waits
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from anomalib_cxr.imaging.confined import main; main()"
)
_OUT_OF_TIME = {-getattr(signal, name) for name in ("SIGXCPU", "SIGKILL") if hasattr(signal, name)}
_is_confined = False

RADIOGRAPH = "anomalib_cxr.imaging.radiograph:read_unconfined"
Read = Callable[[Path, int | None], npt.NDArray[np.float32]]


class NeedsLimits(Exception):  # noqa: N818
    """A file that is decoded in a child process only."""


def need_limits() -> None:
    """Say that what follows is decoded under limits.

    Raises:
        NeedsLimits: If this process has none.
    """
    if not _is_confined:
        raise NeedsLimits


def read_confined(path: Path, bits: int | None, reader: str = RADIOGRAPH) -> npt.NDArray[np.float32]:
    """Read a radiograph, or what else a reader reads, in a child process.

    Args:
        path: File to read.
        bits: Stored depth, or None.
        reader: Function of path and bits that reads without limits, as ``module:name``.

    Returns:
        What the reader gives: (H, W) float32 in [0, 1] for radiographs.

    Raises:
        ValueError: If the child refuses the file, exceeds a limit or dies; if no child can be started.
    """
    if getattr(sys, "frozen", False) or not sys.executable:
        msg = "it needs a decoder in a process of its own, which a frozen program cannot start"
        raise ValueError(msg)
    arguments = [json.dumps(sys.path), os.fspath(path.absolute()), json.dumps(_int(bits)), reader]
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        msg = f"decoding it takes more than {_WALL_SECONDS:g} s"
        raise ValueError(msg) from None
    head, _, film = child.stdout.partition(b"\n")
    if child.returncode in _OUT_OF_TIME:
        msg = f"decoding it takes more than {SECONDS} s of processor time"
        raise ValueError(msg)
    if child.returncode or not head:
        msg = "its decoder died on it"
        raise ValueError(msg)
    answer = json.loads(head)
    if "error" in answer:
        raise ValueError(answer["error"])
    return np.frombuffer(film, np.float32).reshape(answer["shape"]).copy()


def main() -> None:
    """Read the file of the command line under limits and write the film, or why there is none, to standard output."""
    from anomalib_cxr.imaging import radiograph

    module, _, name = sys.argv[4].partition(":")
    read: Read = getattr(import_module(module), name)
    global _is_confined
    _is_confined = True
    path, bits = Path(sys.argv[2]), json.loads(sys.argv[3])
    # Decoders may print: what they print goes nowhere.
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)
        if radiograph.may_be_dicom(path):
            _import_decoders()
        _limit()
        try:
            film = np.ascontiguousarray(read(path, bits))
        except MemoryError:
            answer.write(json.dumps({"error": f"decoding it takes more than {BYTES >> 20} MiB of memory"}).encode())
        except Exception as error:  # noqa: BLE001
            answer.write(json.dumps({"error": radiograph.reason(error)}).encode())
        else:
            answer.write(json.dumps({"shape": film.shape}).encode() + b"\n")
            answer.write(film.data)


def _import_decoders() -> None:
    """Load what decoding loads, so that the limit of memory is that of the picture."""
    try:
        import pydicom.pixels  # noqa: F401
        from pydicom import uid
        from pydicom.pixels import get_decoder

        get_decoder(uid.JPEG2000Lossless)
    except ImportError:
        pass


def _limit() -> None:
    """Limit this process, on what it has used so far."""
    try:
        import resource
    except ImportError:  # Windows: the parent's time is the only limit
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:  # only Linux tells, and only Linux keeps to such a limit
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _int(bits: int | None) -> int | None:
    """A plain integer, which JSON knows, of any integer."""
    return None if bits is None else int(bits)
