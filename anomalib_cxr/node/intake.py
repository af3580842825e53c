"""The one way in, for films that are sent and films that are fetched: on the disk and in the journal, or refused."""

import errno
import logging
import sqlite3
from collections.abc import Callable, Sequence
from hashlib import sha256
from threading import Lock

from anomalib_cxr.node.arriving import look_at
from anomalib_cxr.node.configuration import Rule
from anomalib_cxr.node.journal import Arrival, Journal
from anomalib_cxr.node.logs import event
from anomalib_cxr.node.rules import why_ignored
from anomalib_cxr.node.spool import Spool, uid_hash

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: What the sender of a film that was found here is called in the journal.
FOUND = "(found here)"
_JOURNAL_NO_ROOM = {"database or disk is full", "disk I/O error"}  # SQLITE_FULL, SQLITE_IOERR


class DiskFullError(OSError):
    """There is no room for a film: who sent it must keep it."""


class MismatchError(ValueError):
    """A data set is not what was announced."""


class Intake:
    """Takes films in.

    Args:
        journal: Journal of the node.
        spool: Its files.
        rules: Which films are scored.
        models: Gives the SHA-256 of the models in use.
        arrived: Called when a film is to be scored.
    """

    def __init__(
        self,
        journal: Journal,
        spool: Spool,
        rules: Sequence[Rule],
        models: Callable[[], Sequence[str]],
        arrived: Callable[[], None],
    ) -> None:
        self.journal, self.spool, self.rules = journal, spool, rules
        self._models, self._arrived = models, arrived
        #: Held while a film's file and its row must agree; retention holds it too.
        self.lock = Lock()

    def __call__(self, content: bytes, announced_uid: str, sender: str) -> Arrival:
        """Take a film in: when this returns, it is on the disk and in the journal.

        Args:
            content: A DICOM file.
            announced_uid: SOP Instance UID that the sender stated beside the data set.
            sender: AE title or name of the sender, for the journal.

        Returns:
            What the film is to the journal.

        Raises:
            DiskFullError: If there is no room; nothing was taken.
            MismatchError: If the data set has another SOP Instance UID than was announced.
            OSError: If it cannot be written for another reason.
        """
        state, reason = "received", None
        try:
            arriving = look_at(content)
        except ValueError as error:
            uid, digest, state, reason = announced_uid, sha256(content).hexdigest(), "failed", str(error)
        else:
            uid, digest = arriving.uid, arriving.digest
            if uid != announced_uid:
                msg = "the data set has another SOP Instance UID than the request"
                raise MismatchError(msg)
            if reason := why_ignored(arriving.header, self.rules):
                state = "ignored"
        known_as = uid_hash(uid)
        file = Spool.name(known_as, digest)
        try:
            found = self._take(content, known_as, digest, sender, file, state, reason)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise DiskFullError(error.errno, "the disk is full") from error
            raise
        except sqlite3.OperationalError as error:
            if str(error) in _JOURNAL_NO_ROOM:
                raise DiskFullError(errno.ENOSPC, "the disk of the journal is full") from error
            raise
        level = logging.WARNING if found.conflict or state == "failed" else logging.INFO
        event("arrived", level, film=known_as, sender=sender, bytes=len(content), first=found.first,
              conflict=found.conflict, state=found.state, reason=reason)  # fmt: skip
        if found.state == "received":
            self._arrived()
        return found

    def adopt(self, file: str) -> bool:
        """Take in a film that lies here and that the journal does not know, as if it had just come.

        The process was killed before it answered, or the journal was lost: who sends it again sends what is known.

        Args:
            file: Name of its file.

        Returns:
            Whether it was; not if its name and its content are of different films.
        """
        content = self.spool.film(file).read_bytes()
        known_as, digest, state, reason = file[3:67], sha256(content).hexdigest(), "received", None
        try:
            arriving = look_at(content)
        except ValueError as error:
            state, reason = "failed", str(error)
        else:
            known_as, digest = uid_hash(arriving.uid), arriving.digest
            if reason := why_ignored(arriving.header, self.rules):
                state = "ignored"
        if Spool.name(known_as, digest) != file:
            return False
        self._take(content, known_as, digest, FOUND, file, state, reason)
        return True

    def _take(
        self, content: bytes, known_as: str, digest: str, sender: str, file: str, state: str, reason: str | None
    ) -> Arrival:
        stays = state != "ignored"
        was_there = self.spool.film(file).exists()
        if not was_there and not self.spool.has_room(len(content) if stays else 0):
            raise DiskFullError(errno.ENOSPC, "the disk is full but for its reserve")
        if stays and not was_there:
            self.spool.store(file, content)  # the slow part, side by side
        with self.lock:
            if stays and not self.spool.film(file).exists():  # retention was faster
                self.spool.store(file, content)
            found = self.journal.arrived(known_as, digest, sender, file, state, reason, self._models())  # type: ignore[arg-type]
            if not found.needs_file:
                self.spool.film(file).unlink(missing_ok=True)
        return found
