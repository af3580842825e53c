"""Senders that break the rules of the protocol, or of good manners: the node goes on, and nothing leaves its folder."""

import io
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from archive import Archive, echo, send, until
from drawn_films import ramp, write_dicom
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE

from anomalib_cxr.node.node import Node

Start = Callable[..., Node]
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def store_raw(port: int, content: bytes, uid: str, calling: str = "MODALITY") -> int | None:
    """C-STORE of any bytes, as their data set."""
    node = AE(calling)
    node.add_requested_context(DX, "1.2.840.10008.1.2.1")
    association = node.associate("127.0.0.1", port, ae_title="NODE")
    assert association.is_established
    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = DX
    request.AffectedSOPInstanceUID = uid
    request.Priority = 2
    request.DataSet = io.BytesIO(content)
    association._reactor_checkpoint.clear()  # the answer is for us
    until(lambda: association._is_paused)
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return None if answer is None else answer.Status


def encoded(path: Path) -> bytes:
    """Data set of a film without its meta information."""
    data = dcmread(path)
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    from pydicom.filewriter import write_dataset

    write_dataset(stream, data)
    return stream.getvalue()


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_dicom(tmp_path / "film.dcm", ramp(40, 30, 0.2, 0.9))


def test_a_broken_data_set_is_named_and_kept(start: Start, film: Path) -> None:
    node = start()
    content, uid = encoded(film), str(dcmread(film).SOPInstanceUID)
    for number, broken in enumerate((content[:-500], content[:40], b"\xff" * 100)):
        assert store_raw(node.receiver.port, broken, f"{uid[:50]}.{number}") in {0, 0xA900}
    assert node.journal.counts()["failed"] >= 2
    reasons = {row["reason"] for row in node.journal.query("SELECT reason FROM films")}
    assert all(reason.startswith("its ") for reason in reasons), reasons
    assert store_raw(node.receiver.port, content, uid) == 0
    until(lambda: node.journal.query("SELECT 1 FROM scores"))


def test_a_data_set_that_is_not_what_was_announced_is_refused(start: Start, film: Path) -> None:
    node = start()
    assert store_raw(node.receiver.port, encoded(film), "1.2.3.4") == 0xA900
    assert sum(node.journal.counts().values()) == 0


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_identifiers_are_no_paths_and_no_statements(start: Start, tmp_path: Path) -> None:
    node = start()
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "node")}
    for uid in ("../../../etc/passwd", "1.2/../../3", "..", "1.2\\3", "'; DROP TABLE films; --"):
        hostile = write_dicom(tmp_path / "node" / "hostile.dcm", ramp(40, 30, 0.2, 0.9), SOPInstanceUID=uid)
        content = encoded(hostile)
        hostile.unlink()
        assert store_raw(node.receiver.port, content, uid) in {0, 0xA900}, uid
    assert {row["state"] for row in node.journal.query("SELECT state FROM films")} == {"failed"}
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "node")} == before
    for path in node.spool.films.rglob("*.dcm"):
        assert path.name[:64].isalnum()


def raw(port: int, *pieces: bytes, wait: float = 30) -> bytes:
    """Say anything to the port: what it answers until it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        said = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while got := connection.recv(4096):
                said += got
        except OSError:
            pass
        return said


def test_units_of_any_length_are_not_believed(start: Start, film: Path) -> None:
    node = start()
    began = time.monotonic()
    for kind in (1, 4):
        raw(node.receiver.port, struct.pack(">BBL", kind, 0, 2**32 - 1), b"x" * 4096)
    assert time.monotonic() - began < 20  # hung up on, not waited for
    raw(node.receiver.port, b"GET / HTTP/1.1\r\n\r\n")
    raw(node.receiver.port, struct.pack(">BBL", 1, 0, 4) + b"\xff" * 4)
    assert echo(node.receiver.port) == 0
    assert send(node.receiver.port, film) == [0]


def test_who_sends_more_than_a_film_is_cut_off(start: Start, settings: dict, tmp_path: Path) -> None:
    node = start(receive=settings["receive"] | {"max_film_mib": 1})
    large = write_dicom(tmp_path / "large.dcm", ramp(1024, 1024, 0.2, 0.9))  # two MiB
    small = write_dicom(tmp_path / "small.dcm", ramp(512, 512, 0.2, 0.9))
    assert send(node.receiver.port, large) == [None]
    assert send(node.receiver.port, small, small, small) == [0, 0, 0]  # together more, each less
    assert sum(node.journal.counts().values()) == 1


def test_an_association_that_is_aborted_half_way_leaves_nothing(start: Start, tmp_path: Path) -> None:
    node = start()
    film = dcmread(write_dicom(tmp_path / "film.dcm", ramp(1024, 1024, 0.2, 0.9)))
    sender = AE("MODALITY")
    sender.add_requested_context(DX)
    association = sender.associate("127.0.0.1", node.receiver.port, ae_title="NODE")
    sent: list[Any] = []
    connection = association.dul.socket
    whole = connection.send

    def half(content: bytes) -> None:
        sent.append(len(content))
        if sum(sent) > 500_000:
            connection.close()
            return
        whole(content)

    connection.send = half
    with suppress(RuntimeError):
        association.send_c_store(film)
    until(lambda: echo(node.receiver.port) == 0)
    assert sum(node.journal.counts().values()) == 0
    assert not [path for path in node.spool.films.rglob("*") if path.is_file()]


def test_a_result_that_is_sent_to_the_node_makes_no_circle(start: Start, archive: Archive, film: Path) -> None:
    node = start(destinations=[archive.settings()])
    send(node.receiver.port, film)
    until(lambda: node.journal.counts()["sent"])
    assert send(node.receiver.port, archive.received[0]) == [0]
    assert node.journal.counts()["ignored"] == 1
