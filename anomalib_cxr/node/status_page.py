"""The HTTP listener of the status page: read only, on loopback unless told otherwise, and then by a token."""

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from anomalib_cxr.node import pages
from anomalib_cxr.node.configuration import Page, is_loopback, read_token
from anomalib_cxr.node.pictures import FILM, map_name, thumbnail_name
from anomalib_cxr.node.prometheus import metrics
from anomalib_cxr.node.scores_seen import Watch
from anomalib_cxr.node.settings import ConfigurationError
from anomalib_cxr.node.tls import listening
from anomalib_cxr.node.worklist import table

if TYPE_CHECKING:
    from anomalib_cxr.node.node import Node

Answer = tuple[str, Iterable[bytes]]

_HTML = "text/html; charset=utf-8"
#: No page may load, send to, or be framed by anything but this listener.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class StatusPage:
    """Listens, and shows.

    Args:
        configuration: Of the listener.
        node: What is shown.

    Raises:
        ConfigurationError: If the address cannot be listened at, or the token not be used.
    """

    def __init__(self, configuration: Page, node: "Node") -> None:
        token = None if configuration.token_file is None else read_token(configuration.token_file)
        handler = type("Handler", (_Handler,), {"site": _Site(node), "token": token})
        context = listening(configuration.tls)
        try:
            self._server = _Server((configuration.host, configuration.port), handler)
        except OSError as error:
            msg = f"page: {configuration.host} port {configuration.port} cannot be listened at ({error})."
            raise ConfigurationError(msg) from error
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = Thread(target=self._server.serve_forever, name="page", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Port that is listened at."""
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a reader that goes away is no fault, and a traceback might quote a film."""


class _Site:
    """What is found under each path."""

    def __init__(self, node: "Node") -> None:
        self.node, self.watch = node, Watch(node.journal)

    def find(self, path: str, asked: dict[str, list[str]]) -> Answer | None:
        """Content type and content, or None."""
        node = self.node
        fixed: dict[str, Callable[[], Answer]] = {
            "/": lambda: _text(_HTML, pages.overview(node.journal, node.shelf, self.watch)),
            "/worklist": lambda: _text(_HTML, pages.worklist_page(node.journal, node.spool, _number(asked, "page"))),
            "/worklist.csv": lambda: (
                "text/csv; charset=utf-8",
                (part.encode("utf-8", "replace") for part in table(node.journal, node.spool)),
            ),
            "/metrics": lambda: _text(
                "text/plain; version=0.0.4; charset=utf-8",
                metrics(node.journal, node.shelf, self.watch, node.receiver.answers),
            ),
            "/style.css": lambda: _text("text/css; charset=utf-8", pages.STYLE),
            "/slider.js": lambda: _text("text/javascript; charset=utf-8", pages.SCRIPT),
        }
        if path in fixed:
            return fixed[path]()
        found = re.fullmatch(r"/film/(\d{1,18})(?:/(film\.jpg|map/[0-9a-f]{16}|small/[0-9a-f]{16}))?", path, re.ASCII)
        if found is None:
            return None
        film, what = int(found[1]), found[2]
        if what is None:
            page = pages.film_page(node.journal, node.spool, film, asked.get("model", [None])[0])
            return None if page is None else _text(_HTML, page)
        return self._picture(film, what)

    def _picture(self, film: int, what: str) -> Answer | None:
        rows = self.node.journal.query("SELECT file FROM films WHERE id = ? AND file IS NOT NULL", film)
        if not rows:
            return None
        kind, _, model = what.partition("/")
        name = FILM if kind == "film.jpg" else {"map": map_name, "small": thumbnail_name}[kind](model)
        try:
            content = (self.node.spool.results_of(rows[0]["file"]) / name).read_bytes()
        except OSError:
            return None
        return ("image/png" if Path(name).suffix == ".png" else "image/jpeg"), [content]


class _Handler(BaseHTTPRequestHandler):
    site: _Site
    token: str | None
    timeout = 30
    server_version, sys_version = "anomalib-cxr-node", ""

    def do_GET(self) -> None:
        if not self._is_admitted():
            return
        parts = urlsplit(self.path)
        answer = self.site.find(parts.path, parse_qs(parts.query))
        if answer is None:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", [b"There is no such page.\n"])
        else:
            self._answer(HTTPStatus.OK, *answer)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing: paths name films."""

    def _is_admitted(self) -> bool:
        if self.token is not None:
            if hmac.compare_digest(_given(self.headers.get("Authorization", "")), self.token.encode()):
                return True
            self._answer(HTTPStatus.UNAUTHORIZED, "text/plain", [b"This page needs its token as the password.\n"],
                         {"WWW-Authenticate": 'Basic realm="anomalib-cxr node", charset="UTF-8"'})  # fmt: skip
            return False
        # Else a page of elsewhere, open in the same browser, could read this one by a name that leads to loopback.
        if is_loopback(_host(self.headers.get("Host", ""))):
            return True
        self._answer(HTTPStatus.FORBIDDEN, "text/plain", [b"This page is for this machine alone.\n"])
        return False

    def _answer(
        self, status: HTTPStatus, kind: str, content: Iterable[bytes], more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Connection": "close", **_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            for part in content:
                self.wfile.write(part)


def _text(kind: str, text: str) -> Answer:
    return kind, [text.encode("utf-8", "replace")]


def _number(asked: dict[str, list[str]], name: str) -> int:
    """A page number that was asked for; 0 where it is none."""
    value = asked.get(name, ["0"])[0]
    return int(value) if re.fullmatch(r"\d{1,6}", value, re.ASCII) else 0


def _given(authorization: str) -> bytes:
    """Token that a request gives, as bearer or as the password of HTTP Basic."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode("utf-8", "replace")
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _host(stated: str) -> str:
    """Name or address of a Host header, without port and brackets."""
    name = stated.rpartition(":")[0] if re.search(r":\d+$", stated) else stated
    name = name.strip("[]")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()
