"""The other sides: an archive that takes what is sent, and a modality that sends."""

import io
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

FILM_CLASSES = ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.7")
RESULT_CLASSES = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.66.4")


class Archive:
    """Keeps what it is sent, in the order it came.

    Attributes:
        answer: Status that it gives, or a function of the data set that gives it.
    """

    def __init__(self, port: int = 0) -> None:
        self.received: list[Dataset] = []
        self.answer: Any = 0x0000
        node = AE("ARCHIVE")
        for kind in RESULT_CLASSES:
            node.add_supported_context(kind)
        self._server: Any = node.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        self.port = self._server.server_address[1]

    def _store(self, event: Any) -> int:
        data = dcmread(io.BytesIO(event.encoded_dataset()))
        status = self.answer(data) if callable(self.answer) else self.answer
        if status == 0:
            self.received.append(data)
        return status

    def settings(self) -> dict:
        """As a destination."""
        return {"name": "archive", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": self.port}

    def stop(self) -> None:
        self._server.shutdown()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def send(port: int, *films: Path | Dataset, calling: str = "MODALITY", called: str = "NODE") -> list[int | None]:
    """Send films over one association: the status of each, or None where there was no answer."""
    node = AE(calling)
    for kind in FILM_CLASSES:
        node.add_requested_context(kind)
    association = node.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return [None] * len(films)
    answers = [association.send_c_store(film if isinstance(film, Dataset) else dcmread(film)) for film in films]
    association.release()
    return [answer.get("Status") for answer in answers]


def echo(port: int, calling: str = "MODALITY", called: str = "NODE") -> int | None:
    node = AE(calling)
    node.add_requested_context(Verification)
    association = node.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return None
    status = association.send_c_echo().get("Status")
    association.release()
    return status


def until(met: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
