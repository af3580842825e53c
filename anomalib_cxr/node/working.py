"""A thread of the node that works off what the journal has, and then waits until there is more."""

import logging
from threading import Event, Thread
from typing import Any

from anomalib_cxr.node.logs import event

_IDLE_S = 1.0


class Working(Thread):
    """Works until told to stop; an error is logged, since the journal still has what was not done.

    Args:
        name: Of the thread.
        kind: What the log calls it.
        **details: What the log says of it besides.

    Attributes:
        wake: Set when there may be something to do.
    """

    def __init__(self, name: str, kind: str, **details: Any) -> None:
        super().__init__(name=name, daemon=True)
        self.wake, self._stopping = Event(), Event()
        self._kind, self._details = kind, details

    def stop(self) -> None:
        """End after what is at hand."""
        self._stopping.set()
        self.wake.set()

    def run(self) -> None:
        """Work until told to stop."""
        while not self._stopping.is_set():
            self.wake.clear()
            try:
                worked = self.work()
            except Exception as error:  # noqa: BLE001  # a full disk, perhaps
                event(self._kind, logging.ERROR, **self._details, reason=type(error).__name__)
                worked = False
            if not worked:
                self.wake.wait(_IDLE_S)

    def work(self) -> bool:
        """Do what comes next; returns whether something was done."""
        raise NotImplementedError
