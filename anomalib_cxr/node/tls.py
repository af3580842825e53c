"""TLS contexts by configuration: version 1.2 at least, the other side checked."""

import socket
import ssl
from typing import Any

from anomalib_cxr.node.configuration import Tls
from anomalib_cxr.node.settings import ConfigurationError

_STALLED_S = 30


class _Listening(ssl.SSLContext):
    """Leaves the handshake to whoever reads first, so that a client that stalls in it keeps no other waiting."""

    def wrap_socket(self, sock: socket.socket, server_side: bool = False, **_: Any) -> ssl.SSLSocket:  # type: ignore[override]
        sock.settimeout(_STALLED_S)
        return super().wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)


def listening(tls: Tls | None) -> ssl.SSLContext | None:
    """Context of a listener; with authorities it admits nobody without a certificate of theirs.

    Args:
        tls: Configuration, or None for plain text.

    Raises:
        ConfigurationError: If a file cannot be read or used.
    """
    if tls is None:
        return None
    context = _Listening(ssl.PROTOCOL_TLS_SERVER)
    _load(context, tls)
    if tls.authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def connecting(tls: Tls | None) -> ssl.SSLContext | None:
    """Context of a connection, which checks the other side's certificate and name.

    Args:
        tls: Configuration, or None for plain text.

    Raises:
        ConfigurationError: If a file cannot be read or used.
    """
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.authorities is None:
        context.load_default_certs()
    _load(context, tls)
    return context


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
        if tls.authorities is not None:
            context.load_verify_locations(tls.authorities)
    except (OSError, ssl.SSLError) as error:
        named = " or ".join(str(path) for path in (tls.certificate, tls.key, tls.authorities) if path is not None)
        msg = f"{named} cannot be used for TLS: {error}."
        raise ConfigurationError(msg) from error
