"""The DICOM listener: C-ECHO and C-STORE, answered with success once the film cannot be lost."""

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any

from pynetdicom import AE, evt

from anomalib_cxr.node.configuration import Receive
from anomalib_cxr.node.intake import DiskFullError, Intake, MismatchError
from anomalib_cxr.node.logs import event
from anomalib_cxr.node.settings import ConfigurationError
from anomalib_cxr.node.stopwatch import Stopwatch
from anomalib_cxr.node.tls import listening

#: CR, DX for presentation, and Secondary Capture.
FILMS = ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.7")
_VERIFICATION = "1.2.840.10008.1.1"

# PS3.7 annex C and PS3.4 B.2.3.
SUCCESS, OUT_OF_RESOURCES, MISMATCH, FAILURE = 0x0000, 0xA700, 0xA900, 0xC001

_PDU = 2**17
#: Longest unit that is read at all. Its sender states the length, up to 4 GiB, and the library would believe it.
_LONGEST_PDU = 2**20


class Receiver:
    """Listens, and hands films to the intake.

    Args:
        configuration: Of the listener.
        intake: Takes films in.

    Attributes:
        answers: Seconds from the whole film to its answer.

    Raises:
        ConfigurationError: If the address cannot be listened at.
    """

    def __init__(self, configuration: Receive, intake: Intake) -> None:
        self.intake, self.answers = intake, Stopwatch()
        self._longest = configuration.max_film_mib * 2**20
        self._bytes: dict[Any, int] = {}
        self._lock = Lock()
        node = self._node = AE(configuration.ae_title)
        node.require_called_aet = True
        node.require_calling_aet = list(configuration.calling)
        node.maximum_associations = configuration.max_associations
        node.maximum_pdu_size = _PDU
        node.add_supported_context(_VERIFICATION)
        for kind in FILMS:
            node.add_supported_context(kind, transfer_syntaxes())
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, _guard),
            (evt.EVT_PDU_RECV, self._count),
            (evt.EVT_CONN_CLOSE, self._forget),
            (evt.EVT_REJECTED, _rejected),
            (evt.EVT_C_STORE, self._store),
        ]
        try:
            self._server: Any = node.start_server(
                (configuration.host, configuration.port),
                block=False,
                ssl_context=listening(configuration.tls),
                evt_handlers=handlers,
            )
        except OSError as error:
            msg = f"receive: {configuration.host} port {configuration.port} cannot be listened at ({error})."
            raise ConfigurationError(msg) from error

    @property
    def port(self) -> int:
        """Port that is listened at."""
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Take no more associations, and end those that are open: a film that got no answer is sent again."""
        self._server.shutdown()
        for association in self._node.active_associations:
            association.abort(block=False)

    def _store(self, request: Any) -> int:
        with self.answers:
            return self._answer(request)

    def _answer(self, request: Any) -> int:
        association = request.assoc
        with self._lock:
            self._bytes.pop(association, None)
        sender = str(association.requestor.ae_title).strip()
        try:
            self.intake(request.encoded_dataset(), str(request.request.AffectedSOPInstanceUID), sender)
        except DiskFullError as error:
            event("refused", logging.ERROR, sender=sender, reason=error.strerror)
            return OUT_OF_RESOURCES
        except MismatchError as error:
            event("refused", logging.WARNING, sender=sender, reason=str(error))
            return MISMATCH
        except Exception as error:  # noqa: BLE001  # whatever it is, the film was not taken and the sender must know
            event("refused", logging.ERROR, sender=sender, reason=type(error).__name__)
            return FAILURE
        return SUCCESS

    def _count(self, received: Any) -> None:
        """Cut off who sends more than the largest film between two answers."""
        if type(received.pdu).__name__ != "P_DATA_TF":
            return
        association, size = received.assoc, len(received.pdu)
        with self._lock:
            size += self._bytes.get(association, 0)
            self._bytes[association] = size
        if size > self._longest:
            event("cut off", logging.WARNING, reason="more bytes than the largest film may have")
            association.abort(block=False)

    def _forget(self, closed: Any) -> None:
        with self._lock:
            self._bytes.pop(closed.assoc, None)


def transfer_syntaxes() -> list[str]:
    """Transfer syntaxes that the reader of films decodes here."""
    from pydicom import uid
    from pydicom.pixels import get_decoder

    native = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian]
    families = (uid.JPEGTransferSyntaxes, uid.JPEGLSTransferSyntaxes, uid.JPEG2000TransferSyntaxes)
    compressed = [uid.RLELossless, *(known for family in families for known in family)]
    return [str(one) for one in native + [known for known in compressed if _is_decoded(get_decoder, known)]]


def _is_decoded(get_decoder: Callable[[Any], Any], syntax: Any) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _guard(opened: Any) -> None:
    """Make the connection refuse units of any length, and read those that it takes in few pieces.

    The library reads 4096 bytes at a time, 2500 times for a film, which keeps the films at hand from being scored.
    """
    connection = opened.assoc.dul.socket

    def bounded(size: int) -> bytearray:
        if size > _LONGEST_PDU:
            event("cut off", logging.WARNING, reason="a protocol unit longer than any that was agreed on")
            msg = "the unit is too long"
            raise OSError(msg)
        unit, got = bytearray(size), 0
        with memoryview(unit) as rest:
            while got < size and connection.socket is not None:
                read = connection.socket.recv_into(rest[got:])
                if not read:
                    break
                got += read
        del unit[got:]
        return unit

    connection.recv = bounded


def _rejected(refused: Any) -> None:
    requestor = refused.assoc.requestor
    event("rejected", logging.WARNING, sender=str(requestor.ae_title).strip(), address=str(requestor.address))
