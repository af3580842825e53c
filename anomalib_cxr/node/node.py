"""A node as a whole: its parts made, started and stopped in their order."""

from contextlib import ExitStack
from pathlib import Path
from threading import Event

from anomalib_cxr.node.configuration import Configuration, Destination, load
from anomalib_cxr.node.dicomweb import StowTransport
from anomalib_cxr.node.intake import Intake
from anomalib_cxr.node.journal import Journal
from anomalib_cxr.node.logs import event
from anomalib_cxr.node.pull import Puller
from anomalib_cxr.node.receiver import Receiver
from anomalib_cxr.node.retention import Retention
from anomalib_cxr.node.sender import Sender, StoreTransport, Transport
from anomalib_cxr.node.settings import ConfigurationError
from anomalib_cxr.node.shelf import Shelf
from anomalib_cxr.node.spool import Spool
from anomalib_cxr.node.status_page import StatusPage
from anomalib_cxr.node.worker import Worker


class Node:
    """A running node, until it is stopped.

    Films that a process before this one took in are scored and sent by this one.

    Args:
        configuration: What it is told.

    Raises:
        ConfigurationError: If a model cannot be used, or an address not be listened at.
        JournalError: If another node uses the folder.
    """

    def __init__(self, configuration: Configuration) -> None:
        given = self.configuration = configuration
        with ExitStack() as undo:
            self.journal = Journal(given.folder / "journal.sqlite")
            undo.callback(self.journal.close)
            self.spool = Spool(given.folder, round(given.reserve_gib * 2**30))
            unknown = self.spool.sweep({file for _, file in self.journal.files()})
            abandoned = self.journal.abandon([one.name for one in given.destinations])
            self.shelf = Shelf(given.models)
            title = given.receive.ae_title
            self.senders = [
                Sender(one.name, transport(one, title), self.journal, self.spool, given.retry)
                for one in given.destinations
            ]
            scored = _All([sender.wake for sender in self.senders])
            self.worker = Worker(given, self.journal, self.spool, self.shelf, scored)
            self.intake = Intake(self.journal, self.spool, given.rules, lambda: self.shelf.hashes, self.worker.wake.set)
            adopted = sum(self.intake.adopt(file) for file in unknown)
            self.pullers = [Puller(one, self.intake) for one in given.pull]
            self.retention = Retention(self.journal, self.spool, self.intake.lock, given.retention_days)
            self.receiver = Receiver(given.receive, self.intake)
            undo.callback(self.receiver.stop)
            self.page = None if given.page is None else StatusPage(given.page, self)
            undo.pop_all()
        self._is_stopped = False
        self._threads: list[Worker | Sender | Puller | Retention] = [
            self.worker, *self.senders, *self.pullers, self.retention,
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()
        event("started", port=self.receiver.port, page=self.page and self.page.port, adopted=adopted,
              abandoned=abandoned, models=[f"{model.name} {model.sha256[:16]}" for model in self.shelf.models],
              waiting=self.journal.waiting())  # fmt: skip

    def reload(self, path: str | Path) -> bool:
        """Exchange the models for those of a configuration; if that or one of them is faulty, the old ones stay.

        Args:
            path: Configuration, of which only ``models`` is looked at.

        Returns:
            Whether it was done.
        """
        try:
            models = load(path).models
        except ConfigurationError as error:
            self.shelf.problem = str(error)
            return False
        return self.shelf.exchange(models)

    def stop(self) -> None:
        """Take no more films, end the work at hand, and close the journal; once is enough."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self.receiver.stop()
        if self.page is not None:
            self.page.stop()
        for thread in self._threads:
            thread.stop()
        for thread in self._threads:
            thread.join()
        self.journal.close()
        event("stopped")


def transport(destination: Destination, ae_title: str) -> Transport:
    """The way to a destination.

    Args:
        destination: Its configuration.
        ae_title: Of the node.
    """
    return StoreTransport(destination, ae_title) if destination.web is None else StowTransport(destination.web)


class _All(Event):
    """An event that sets others."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__()
        self._events = events

    def set(self) -> None:
        for one in self._events:
            one.set()
