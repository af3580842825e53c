"""Sends results to one destination, again and again with growing pauses until they are taken."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydicom import dcmread
from pynetdicom import AE, build_context

from anomalib_cxr.node.configuration import Destination, Retry
from anomalib_cxr.node.journal import Journal
from anomalib_cxr.node.logs import event
from anomalib_cxr.node.spool import Spool
from anomalib_cxr.node.tls import connecting
from anomalib_cxr.node.working import Working

_LITTLE_ENDIAN = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]


class Transport(Protocol):
    """A way to a destination."""

    def send(self, paths: Sequence[Path]) -> Iterator[str | None]:
        """Send files.

        Args:
            paths: DICOM files.

        Yields:
            For each, in their order, None once it has been taken, else why not.
        """
        ...


class StoreTransport:
    """C-STORE over one association for each batch.

    Args:
        destination: Archive.
        ae_title: Of the node.
    """

    def __init__(self, destination: Destination, ae_title: str) -> None:
        self._destination, self._tls = destination, connecting(destination.tls)
        self._node = AE(ae_title)
        self._node.connection_timeout = 10

    def send(self, paths: Sequence[Path]) -> Iterator[str | None]:
        """Send files."""
        given = self._destination
        kinds = [_kind(path) for path in paths]
        association = self._node.associate(
            str(given.host),
            int(given.port or 0),
            [build_context(kind, _LITTLE_ENDIAN) for kind in sorted({kind for kind in kinds if kind})],
            str(given.ae_title),
            tls_args=None if self._tls is None else (self._tls, str(given.host)),
        )
        if not association.is_established:
            yield from ["it cannot be reached, or refuses the association"] * len(paths)
            return
        try:
            for path, kind in zip(paths, kinds, strict=True):
                yield _store(association, path) if kind else "its file is broken"
        finally:
            if association.is_established:
                association.release()


def _kind(path: Path) -> str | None:
    """SOP class of a file, None if it cannot be read."""
    try:
        return str(dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True).SOPClassUID)
    except Exception:  # noqa: BLE001  # pydicom raises whatever a broken file makes it stumble over
        return None


def _store(association: Any, path: Path) -> str | None:
    if not association.is_established:
        return "the association ended"
    try:
        answer = association.send_c_store(dcmread(path))
    except (RuntimeError, ValueError):
        return "it does not take this kind of object"
    if "Status" not in answer:
        return "it gave no answer"
    # Warnings are answers to an object that was stored (PS3.4 B.2.3).
    taken = answer.Status == 0 or answer.Status >> 12 == 0xB
    return None if taken else f"it answered 0x{answer.Status:04X}"


class Sender(Working):
    """The thread of one destination.

    Args:
        name: Of the destination.
        transport: The way there.
        journal: Journal of the node.
        spool: Its files.
        retry: Pauses.

    Attributes:
        wake: Set when something is to be sent.
    """

    def __init__(self, name: str, transport: Transport, journal: Journal, spool: Spool, retry: Retry) -> None:
        super().__init__(f"sender {name}", "sender", destination=name)
        self.destination, self.transport = name, transport
        self.journal, self.spool, self.retry = journal, spool, retry

    def work(self) -> bool:
        """Send what is due; returns whether something was taken."""
        due = self.journal.due(self.destination)
        there = [one for one in due if self.spool.result(one.object).is_file()]
        for one in due:
            if one not in there:
                self.journal.not_delivered(one, "its file is gone", None)
        taken = 0
        answers = self.transport.send([self.spool.result(one.object) for one in there]) if there else iter(())
        for one, reason in zip(there, answers, strict=False):
            if reason is None:
                state = self.journal.delivered(one)
                event("sent", film=one.uid_sha256, destination=self.destination, object=Path(one.object).name,
                      state=state)  # fmt: skip
                taken += 1
            else:
                tries = one.tries + 1
                pause = None if tries >= self.retry.tries else self.retry.pause(tries)
                self.journal.not_delivered(one, reason, None if pause is None else time.time() + pause)
                event("not sent", logging.WARNING, film=one.uid_sha256, destination=self.destination, reason=reason,
                      pause_s=pause)  # fmt: skip
            if self._stopping.is_set():
                break
        return taken > 0
