"""Leases on the folders of jobs: of all processes of all machines that share a folder, one works on each job (ours).

The leases of a folder are numbered files, and the one with the highest number counts. To take the lease is to make the
file of the next number, which every file system grants to one process alone: of two takers one loses. None is ever
removed, so that a number that was seen to be the last cannot come back, and the files say who worked when.

A lease is free for the next taker when its holder said that it has ended; when the holder died on this machine, whose
kernel then lets go of the lock that the holder kept beside it; or when nobody has touched the file for a stated time.
Files are touched and that time is told by the clock of the file system alone: those of the machines may differ.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from anomalib_cxr.files import folder_below, read_json, write_text
from anomalib_cxr.run_folder import LEASES

logger = logging.getLogger(__name__)

STALE_AFTER = 300.0
"""Seconds without a beat after which a lease is free for others. Each lease carries its own."""
_BEATS = 10  # in that time


class LeaseLostError(RuntimeError):
    """Another process has taken the lease over: what this one writes would be mixed with what that one writes."""


class Entry(NamedTuple):
    """One lease as it stands on disk.

    Attributes:
        path: Its file.
        number: Place in the order of the leases of its folder, from 1.
        content: What its holder wrote: ``host``, ``pid``, ``machine``, ``stale_after`` and notes; once it has ended,
            ``ended`` (how) and ``reason``. Empty if the holder died before it could write.
    """

    path: Path
    number: int
    content: dict[str, Any]

    @property
    def ended(self) -> str | None:
        """How the holder's work ended; None while it goes on, or where the holder could not say."""
        return self.content.get("ended")

    @property
    def owner(self) -> str:
        """Holder, for people."""
        return f"process {self.content.get('pid', '?')} on {self.content.get('host', '?')}"

    @property
    def stale_after(self) -> float:
        """Seconds without a beat that make it stale."""
        return float(self.content.get("stale_after", STALE_AFTER))


def last_lease(folder: Path) -> Entry | None:
    """Look up the lease that counts.

    Args:
        folder: Folder of a job.

    Returns:
        The last lease, held or not; None if there never was one.
    """
    return next(leases(folder), None)


def leases(folder: Path) -> Iterator[Entry]:
    """Look up all leases of a folder.

    Args:
        folder: Folder of a job.

    Yields:
        The last lease first.
    """
    for number in range(_last_number(folder / LEASES), 0, -1):
        path = _path(folder / LEASES, number)
        yield Entry(path, number, read_json(path) or {} if path.stat().st_size else {})


def is_free(entry: Entry | None) -> bool:
    """Whether a lease may be followed by the next one.

    Args:
        entry: As :func:`last_lease` gives it.

    Returns:
        True if its holder has ended, died on this machine, or has not beaten for too long.
    """
    if entry is None or entry.ended:
        return True
    if entry.content.get("machine") == _machine():
        lock = _lock(entry.path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pass
        else:
            lock.release()
            return True
    return _silence(entry.path) > entry.stale_after


class Lease:
    """A lease that this process, or the one that started it, holds.

    Args:
        path: Its file.
        lock: Lock that ends with the process.
    """

    def __init__(self, path: Path, lock: FileLock | None = None) -> None:
        self.path = path
        self._number, self._lock = int(path.stem), lock

    @classmethod
    def take(cls, folder: Path, **notes: str) -> "Lease | None":
        """Take the lease of a folder if it is free.

        Args:
            folder: Folder of a job; made if it does not exist.
            **notes: What else the file shall say.

        Returns:
            The lease; None if another process has it.

        Raises:
            OSError: If the folder cannot be written.
        """
        place = folder_below(folder, LEASES)
        last = last_lease(folder)
        if not is_free(last):
            return None
        path = _path(place, last.number + 1 if last else 1)
        lock = _lock(path)
        try:
            # Before the file: who sees the file and no lock takes its maker for dead.
            lock.acquire(timeout=0)
        except Timeout:
            return None
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except BaseException as error:
            lock.release()
            if isinstance(error, FileExistsError):
                return None
            raise
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "stale_after": STALE_AFTER}
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(owner | notes, file)
        return cls(path, lock)

    def beat(self) -> None:
        """Say that the holder is alive.

        Raises:
            LeaseLostError: If it has been too late before, and another process holds the lease now.
            OSError: If the file system does not answer.
        """
        folder = self.path.parent.parent
        last = last_lease(folder)
        if last is None or last.number != self._number:
            owner = last.owner if last else "nobody"
            msg = f"The lease of {folder} has gone to {owner}: this process had not been heard of and stops."
            raise LeaseLostError(msg)
        os.utime(self.path)

    def keep_beating(self, lost: Callable[[str], None]) -> None:
        """Beat from now on, in a thread that ends with the process.

        Args:
            lost: Called with the reason once the lease is lost.
        """
        entry = last_lease(self.path.parent.parent)
        pause = (entry.stale_after if entry else STALE_AFTER) / _BEATS

        def beat() -> None:
            while True:
                try:
                    self.beat()  # at once: loading may have taken longer than a lease may be silent
                except LeaseLostError as error:
                    lost(str(error))
                    return
                except OSError as error:
                    logger.warning("The lease %s cannot be touched, tried again: %s", self.path, error)
                time.sleep(pause)

        threading.Thread(target=beat, daemon=True).start()

    def release(self, ended: str, reason: str = "") -> None:
        """Let the next one take it; nothing is written if that has happened already.

        Args:
            ended: How the work ended.
            reason: Why, where it ended badly.

        Raises:
            OSError: If it cannot be written; it is free all the same, later.
        """
        try:
            self.beat()
            content = read_json(self.path) or {}
            write_text(self.path, json.dumps(content | {"ended": ended, "reason": reason}))
        except LeaseLostError as error:
            logger.warning("%s", error)
        finally:
            if self._lock is not None:
                self._lock.release()


def _path(place: Path, number: int) -> Path:
    return place / f"{number:04d}.json"


def _last_number(place: Path) -> int:
    try:
        names = os.listdir(place)  # noqa: PTH208  # names are all that is looked at
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max((int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()), default=0)


def _lock(path: Path) -> FileLock:
    # Kept by one thread, let go by another: by default filelock would see two locks.
    return FileLock(path.with_suffix(".lock"), thread_local=False)


def _silence(path: Path) -> float:
    """Seconds since a file was touched, both ends by the clock of its file system."""
    probe = path.parent / f".{secrets.token_hex(8)}.now"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        os.utime(probe)  # as a beat does: a network file system sets the time of its server
        now = probe.stat().st_mtime
    finally:
        probe.unlink()
    with path.open("rb") as file:  # an open file's state is fresh, where a network file system keeps others for a while
        return now - os.fstat(file.fileno()).st_mtime


def _machine() -> str:
    """What tells a running machine from all others: two of one name may share a folder, and locks hold within one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"
