"""DICOMweb: a client by configuration, and STOW as a way to a destination."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anomalib_cxr.node.configuration import Web, read_secret

_TIMEOUT_S = (10, 60)


def client(web: Web) -> Any:
    """Make a client.

    Args:
        web: The service.

    Returns:
        A ``DICOMwebClient`` that waits for no more than a minute, and does not try again by itself.

    Raises:
        ConfigurationError: If a password or token cannot be read.
    """
    import requests
    from dicomweb_client import DICOMwebClient

    session = requests.Session()
    if web.user is not None and web.password_file is not None:
        session.auth = (web.user, read_secret(web.password_file))
    if web.tls is not None:
        session.verify = str(web.tls.authorities) if web.tls.authorities else True
        if web.tls.certificate is not None:
            session.cert = (str(web.tls.certificate), str(web.tls.key))
    headers = {} if web.token_file is None else {"Authorization": f"Bearer {read_secret(web.token_file)}"}
    # In one piece: not every service takes chunks.
    made = DICOMwebClient(web.url, session, headers=headers, chunk_size=2**28, permissive_uid=True, timeout=_TIMEOUT_S)
    made.set_http_retry_params(retry=False)
    return made


class StowTransport:
    """STOW-RS, one object a request.

    Args:
        web: The service.

    Raises:
        ConfigurationError: If a password or token cannot be read.
    """

    def __init__(self, web: Web) -> None:
        self._client = client(web)

    def send(self, paths: Sequence[Path]) -> Iterator[str | None]:
        """Send files."""
        for path in paths:
            yield self._send(path)

    def _send(self, path: Path) -> str | None:
        import requests
        from pydicom import dcmread

        try:
            answer = self._client.store_instances([dcmread(path)])
        except requests.HTTPError as error:
            return f"it answered {error.response.status_code}" if error.response is not None else "it gave no answer"
        except requests.RequestException as error:
            return f"it cannot be reached ({type(error).__name__})"
        refused = answer.get("FailedSOPSequence")
        return f"it answered 0x{refused[0].get('FailureReason') or 0:04X}" if refused else None
