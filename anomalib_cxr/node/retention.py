"""Deletes films and results some time after nothing more was to be done with them; the journal keeps what it knows."""

import time
from threading import Event, Lock, Thread

from anomalib_cxr.node.journal import Journal
from anomalib_cxr.node.logs import event
from anomalib_cxr.node.spool import Spool

_DAY = 86400.0
_LOOK_S = 600.0


class Retention(Thread):
    """The thread that deletes.

    Args:
        journal: Journal of the node.
        spool: Its files.
        lock: Of the intake: no film may come while its file goes.
        days: How long films are kept after they ended.
    """

    def __init__(self, journal: Journal, spool: Spool, lock: Lock, days: float) -> None:
        super().__init__(name="retention", daemon=True)
        self.journal, self.spool, self.days = journal, spool, days
        self._lock, self._stopping = lock, Event()

    def stop(self) -> None:
        """End after the film at hand."""
        self._stopping.set()

    def run(self) -> None:
        """Delete now and then until told to stop."""
        while not self._stopping.is_set():
            self.clean()
            self._stopping.wait(_LOOK_S)

    def clean(self, now: float | None = None) -> int:
        """Delete what is old enough.

        Args:
            now: Time; None takes the clock's.

        Returns:
            Number of films deleted.
        """
        moment = (time.time() if now is None else now) - self.days * _DAY
        deleted = 0
        for film, file in self.journal.ended_before(moment):
            if self._stopping.is_set():
                break
            with self._lock:
                # The journal first: a file that it does not know is swept when a node starts.
                if self.journal.forget_file(film):
                    self.spool.remove(file)
                    deleted += 1
        if deleted:
            event("deleted", films=deleted)
        return deleted
