"""DICOMweb to and from an archive, and TLS on both ways."""

import http.server
import io
import json
import shutil
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from archive import Archive, send, until
from drawn_films import ramp, write_dicom
from pydicom import dcmread
from pynetdicom import AE

from anomalib_cxr.node.node import Node

Start = Callable[..., Node]


class WebArchive:
    """As much of DICOMweb as the node asks for: QIDO for series and instances, WADO for an instance, STOW."""

    def __init__(self) -> None:
        self.films: list[Path] = []
        self.stored: list[Any] = []
        self.asked: list[str] = []
        self.answers: list[int] = []  # statuses of the next STOW requests; then 200
        archive = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                archive.asked.append(self.path)

            def reply(self, kind: str, content: bytes, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                if self.headers["Authorization"] != "Bearer secret":
                    self.reply("text/plain", b"", 401)
                    return
                parts = self.path.partition("?")[0].strip("/").split("/")
                data = [dcmread(path) for path in archive.films]
                if parts == ["series"]:
                    self.found([{"0020000D": one.StudyInstanceUID, "0020000E": one.SeriesInstanceUID} for one in data])
                elif parts[-1] == "instances":
                    self.found([{"00080018": one.SOPInstanceUID} for one in data if one.SeriesInstanceUID == parts[3]])
                else:
                    path = next(p for p, one in zip(archive.films, data, strict=True) if one.SOPInstanceUID == parts[5])
                    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n--b--"
                    self.reply('multipart/related; type="application/dicom"; boundary=b', body)

            def found(self, rows: list[dict[str, str]]) -> None:
                first = "offset=0" in self.path or "offset" not in self.path
                content = [{tag: {"vr": "UI", "Value": [str(uid)]} for tag, uid in row.items()} for row in rows]
                self.reply("application/dicom+json", json.dumps(content if first else []).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = archive.answers.pop(0) if archive.answers else 200
                if status == 200:
                    head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                    parts = message_from_bytes(head + body).get_payload()
                    archive.stored += [dcmread(io.BytesIO(part.get_payload(decode=True))) for part in parts]  # type: ignore[union-attr]
                self.reply("application/dicom+json", b"{}", status)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[WebArchive]:
    archive = WebArchive()
    yield archive
    archive.stop()


def test_films_are_pulled_once_and_results_stored(start: Start, web: WebArchive, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    service = {"url": web.url, "token_file": "token"}
    web.answers = [503, 409]
    web.films = [write_dicom(tmp_path / f"{number}.dcm", ramp(32, 32, 0.1 * number, 0.9)) for number in range(2)]
    node = start(
        destinations=[{"name": "web", "web": service}], pull=[{"web": service, "every_s": 0.05, "modality": ["DX"]}]
    )
    until(lambda: node.journal.counts()["sent"] == 2)
    found = {one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in web.stored}
    assert found == {dcmread(film).SOPInstanceUID for film in web.films}
    web.films.append(write_dicom(tmp_path / "later.dcm", ramp(32, 32, 0.5, 0.9)))
    until(lambda: node.journal.counts()["sent"] == 3)
    fetched = [path for path in web.asked if path.count("/") == 6]
    assert len(fetched) == 3  # each once, though the archive lists it again and again
    assert all("Modality=DX" in path and "StudyDate=" in path for path in web.asked if path.startswith("/series"))
    assert {row["sender"] for row in node.journal.query("SELECT sender FROM films")} == {"(DICOMweb)"}


def test_an_archive_that_fails_is_asked_again(start: Start, web: WebArchive, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong\n")
    node = start(pull=[{"web": {"url": web.url, "token_file": "token"}, "every_s": 0.05}])
    until(lambda: len(web.asked) > 2)
    assert node.pullers[0].is_alive()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of it for this machine and for a client."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for name in ("node", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", "names", "-out", f"{name}.pem")  # fmt: skip
    return folder


def tls(folder: Path, name: str | None = None) -> dict[str, str]:
    own = {} if name is None else {"certificate": str(folder / f"{name}.pem"), "key": str(folder / f"{name}.key")}
    return own | {"authorities": str(folder / "ca.pem")}


def test_tls_on_every_way(start: Start, settings: dict, certificates: Path, tmp_path: Path) -> None:
    """One node sends its results to another one's listener, which asks for a certificate."""
    film = write_dicom(tmp_path / "film.dcm", ramp(32, 32, 0.2, 0.9))
    second = start(
        folder="second",
        receive={"ae_title": "SECOND", "calling": ["NODE", "MODALITY"], "port": 0, "tls": tls(certificates, "node")},
        page={"port": 0, "tls": {k: v for k, v in tls(certificates, "node").items() if k != "authorities"}},
    )
    port = second.receiver.port
    there = {"name": "second", "ae_title": "SECOND", "host": "127.0.0.1", "port": port}
    first = start(destinations=[there | {"tls": tls(certificates, "client")}])
    assert send(first.receiver.port, film) == [0]
    until(lambda: first.journal.counts()["sent"] == 1)
    assert second.journal.counts()["ignored"] == 1  # it knows a result of this software
    assert send(port, film, called="SECOND") == [None]  # plain text is not heard

    def associated(context: ssl.SSLContext) -> bool:
        sender = AE("MODALITY")
        sender.add_requested_context("1.2.840.10008.1.1")
        association = sender.associate("127.0.0.1", port, ae_title="SECOND", tls_args=(context, "127.0.0.1"))
        established = association.is_established
        if established:
            association.release()
        return bool(established)

    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    assert not associated(context)  # no certificate of its own
    context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    stalled = __import__("socket").create_connection(("127.0.0.1", port))  # never says hello
    began = time.monotonic()
    assert associated(context)
    assert time.monotonic() - began < 20
    stalled.close()

    assert second.page is not None
    page = f"https://127.0.0.1:{second.page.port}/metrics"
    with urllib.request.urlopen(page, context=ssl.create_default_context(cafile=certificates / "ca.pem")) as answer:
        assert b"anomalib_cxr_node_films" in answer.read()
    with pytest.raises(OSError):
        urllib.request.urlopen(page.replace("https", "http"), timeout=5)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(page, context=ssl.create_default_context())
    unknown = start(folder="third", destinations=[there | {"tls": {}}])  # trusts the machine's authorities alone
    send(unknown.receiver.port, film)
    until(lambda: unknown.journal.counts()["failed"] == 1)


def test_certificates_that_cannot_be_used_are_named(start: Start, settings: dict, archive: Archive) -> None:
    from anomalib_cxr.node.settings import ConfigurationError

    with pytest.raises(ConfigurationError, match=r"gone\.pem or .*gone\.key cannot be used for TLS: "):
        start(receive=settings["receive"] | {"tls": {"certificate": "gone.pem", "key": "gone.key"}})
    with pytest.raises(ConfigurationError, match="cannot be used for TLS"):
        start(destinations=[archive.settings() | {"tls": {"authorities": "gone.pem"}}])
