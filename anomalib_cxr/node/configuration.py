"""What a node is told: ``node.yaml``, checked before anything is opened."""

import ipaddress
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from anomalib_cxr.deploy.runtimes import Precision, Runtime
from anomalib_cxr.node.settings import ConfigurationError, build

ResultKind = Literal["capture", "report", "segmentation"]

_TOKEN = 16  # characters


def _number(default: Any, low: float, high: float) -> Any:
    return field(default=default, metadata={"range": (low, high)})


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone.

    Examples:
        >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", "archive")]
        [True, True, True, False, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_title(title: str) -> None:
    """PS3.5 6.2: at most 16 characters of the default repertoire, no backslash, not blanks alone."""
    fits = 0 < len(title) <= 16 and title.isascii() and title.isprintable() and "\\" not in title
    if not fits or title != title.strip():
        msg = f"{title!r} is no AE title: 1 to 16 printable ASCII characters without a backslash."
        raise ValueError(msg)


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > 64 or not name.isprintable():
        msg = f"name must be 1 to 64 printable characters, not {name!r}."
        raise ValueError(msg)


def _check_listening_certificate(tls: "Tls | None") -> None:
    if tls is not None and tls.certificate is None:
        msg = "TLS of a listener needs certificate and key: state both."
        raise ValueError(msg)


@dataclass(frozen=True)
class Tls:
    """TLS of a listener or of a connection.

    Attributes:
        certificate: PEM file of the own certificate, with those between it and the authority; a connection may do
            without.
        key: PEM file of its key.
        authorities: PEM file of the authorities that the other side's certificate must come from; a listener that has
            one admits nobody without a certificate, a connection that has none trusts the machine's.
    """

    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            msg = "certificate and key belong together: state both."
            raise ValueError(msg)


@dataclass(frozen=True)
class Receive:
    """The DICOM listener.

    Attributes:
        ae_title: Of the node.
        calling: AE titles that may send; all others are refused.
        host: Address to listen at.
        port: Port to listen at.
        max_associations: At once.
        max_film_mib: Largest film in MiB; a sender of more is cut off.
        tls: None listens in plain text.
    """

    ae_title: str
    calling: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = _number(11112, 0, 65535)
    max_associations: int = _number(10, 1, 1000)
    max_film_mib: int = _number(256, 1, 512)
    tls: Tls | None = None

    def __post_init__(self) -> None:
        for title in (self.ae_title, *self.calling):
            _check_title(title)
        if not self.calling:
            msg = "calling is empty, so that nobody could send: list the AE titles that may."
            raise ValueError(msg)
        _check_listening_certificate(self.tls)


@dataclass(frozen=True)
class Model:
    """One exported model.

    Attributes:
        name: What results and pages call it; unique.
        path: ``.onnx`` or ``.xml``.
        site: Site file of `anomalib-cxr-infer commission`.
        rate: False-positive rate of the decision at the site.
        reference: ``predictions.csv`` of earlier films of the mix that is received, for the drift alarm; without one,
            the site's normal films.
        false_alarm: Bound on the chance of any false drift alarm.
        runtime: None takes that of the file's format.
        precision: As in :class:`~anomalib_cxr.deploy.ExportedDetector`.
        threads: Cores to use; None lets the runtime choose.
    """

    name: str
    path: Path
    site: Path | None = None
    rate: float = _number(0.1, 1e-6, 1 - 1e-6)
    reference: Path | None = None
    false_alarm: float = _number(0.01, 1e-9, 0.5)
    runtime: Runtime | None = None
    precision: Precision = "f32"
    threads: int | None = _number(None, 1, 1024)

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True)
class Web:
    """A DICOMweb service.

    Attributes:
        url: Root of its services.
        user: Of HTTP Basic; its password stands in ``password_file``.
        password_file: File with the password.
        token_file: File with a bearer token.
        tls: Own certificate and authorities; None trusts the machine's authorities.
    """

    url: str
    user: str | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            msg = f"url must begin with http:// or https://, not {self.url!r}."
            raise ValueError(msg)
        if (self.user is None) != (self.password_file is None):
            msg = "user and password_file belong together: state both."
            raise ValueError(msg)
        if self.user is not None and self.token_file is not None:
            msg = "a user and a token_file exclude each other: state one of them."
            raise ValueError(msg)


@dataclass(frozen=True)
class Destination:
    """Where results are sent, by C-STORE or by STOW.

    Attributes:
        name: What the journal and pages call it; unique.
        ae_title: Of an archive that takes C-STORE.
        host: Its address.
        port: Its port.
        tls: None connects in plain text.
        web: Or its DICOMweb service.
    """

    name: str
    ae_title: str | None = None
    host: str | None = None
    port: int | None = _number(None, 1, 65535)
    tls: Tls | None = None
    web: Web | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        dicom = (self.ae_title, self.host, self.port)
        if self.web is None and self.ae_title is not None and None not in dicom:
            _check_title(self.ae_title)
            return
        if self.web is not None and dicom == (None, None, None):
            return
        msg = "a destination has either ae_title, host and port, or web: state one of the two, whole."
        raise ValueError(msg)


@dataclass(frozen=True)
class Rule:
    """Which films are scored: those that meet all that one rule states. Capitals do not matter.

    Attributes:
        modality: Values of Modality.
        body_part: Of BodyPartExamined; "" stands for a film that states none.
        view: Of ViewPosition; "" likewise.
        description: Patterns such as ``*chest*``, of which StudyDescription, SeriesDescription or ProtocolName meets
            one.
        not_description: Patterns of which none of them meets any.
    """

    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    view: tuple[str, ...] = ()
    description: tuple[str, ...] = ()
    not_description: tuple[str, ...] = ()


FRONTAL_CHEST = Rule(
    modality=("CR", "DX"),
    body_part=("CHEST", "THORAX", ""),
    view=("PA", "AP", ""),
    not_description=("*lateral*", "* lat", "* lat *"),
)


@dataclass(frozen=True)
class Pull:
    """A DICOMweb archive that is asked for new films.

    Attributes:
        web: The service.
        modality: Of the films.
        body_part: Of the films; none: any.
        days: How far back studies are looked for.
        every_s: Seconds between looks.
    """

    web: Web
    modality: tuple[str, ...] = ("CR", "DX")
    body_part: tuple[str, ...] = ()
    days: int = _number(1, 0, 3650)
    every_s: float = _number(60, 0.05, 86400)

    def __post_init__(self) -> None:
        if not self.modality:
            msg = "modality is empty: list those to ask for."
            raise ValueError(msg)


@dataclass(frozen=True)
class Page:
    """The status page and the metrics.

    Attributes:
        host: Address to listen at.
        port: Port to listen at.
        token_file: File with the token that a reader must give, at least 16 characters; beyond loopback it is a must.
        tls: None listens in plain text.
    """

    host: str = "127.0.0.1"
    port: int = _number(8104, 0, 65535)
    token_file: Path | None = None
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and self.token_file is None:
            msg = f"a page at {self.host} can be reached from other machines: state a token_file, or host 127.0.0.1."
            raise ValueError(msg)
        _check_listening_certificate(self.tls)


@dataclass(frozen=True)
class Retry:
    """Pauses between tries, each twice as long as the one before.

    Attributes:
        first_s: Seconds after the first try.
        longest_s: Seconds that no pause exceeds.
        tries: After so many a film is given up, and named as failed.
    """

    first_s: float = _number(5, 0.01, 3600)
    longest_s: float = _number(600, 0.01, 86400)
    tries: int = _number(500, 1, 1_000_000)

    def pause(self, tries: int) -> float:
        """Seconds to wait after so many tries.

        Examples:
            >>> [Retry().pause(tries) for tries in (1, 2, 3, 40)]
            [5.0, 10.0, 20.0, 600.0]
        """
        return float(min(self.first_s * 2.0 ** min(tries - 1, 60), self.longest_s))


@dataclass(frozen=True)
class Configuration:
    """A whole node.

    Attributes:
        folder: Where films, results and journal lie; the node's own.
        receive: The DICOM listener.
        models: Models that score every film.
        destinations: Where results go; none keeps them on the status page.
        rules: Films that one of them names are scored, all others counted and ignored.
        results: Kinds of objects that are sent.
        pull: Archives that are asked for films.
        page: The status page; null has none.
        retry: Pauses between tries.
        retention_days: Films and results are deleted so many days after they ended.
        reserve_gib: Free disk below which new films are refused.
    """

    folder: Path
    receive: Receive
    models: tuple[Model, ...]
    destinations: tuple[Destination, ...] = ()
    rules: tuple[Rule, ...] = (FRONTAL_CHEST,)
    results: tuple[ResultKind, ...] = ("capture",)
    pull: tuple[Pull, ...] = ()
    page: Page | None = Page()
    retry: Retry = Retry()
    retention_days: float = _number(30, 0, 36500)
    reserve_gib: float = _number(1, 0, 1e6)

    def __post_init__(self) -> None:
        for what, count in (("models", len(self.models)), ("rules", len(self.rules))):
            if not count:
                msg = f"{what} is empty, so that nothing would be scored: state one."
                raise ValueError(msg)
        for what, names in (("models", self.models), ("destinations", self.destinations)):
            twice = [name for name, times in Counter(one.name for one in names).items() if times > 1]
            if twice:
                msg = f"{what} has {twice[0]!r} twice: give each a name of its own."
                raise ValueError(msg)
        if self.destinations and not self.results:
            msg = "results is empty, so that nothing would be sent: state a kind, or no destination."
            raise ValueError(msg)


def load(path: str | Path) -> Configuration:
    """Read a configuration.

    Args:
        path: YAML file; paths in it are relative to its folder.

    Returns:
        The configuration.

    Raises:
        ConfigurationError: If it cannot be read or used; the message names file and place.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        msg = f"{path} cannot be read as YAML ({' '.join(str(error).split())}): see the README of the node."
        raise ConfigurationError(msg) from error
    return build(Configuration, content, path.name, path.absolute().parent)


def read_secret(path: Path, shortest: int = 1) -> str:
    """Read a password or token, without the end of its line.

    Args:
        path: File.
        shortest: Characters that it must have.

    Raises:
        ConfigurationError: If it cannot be read, or is too short.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        msg = f"{path} cannot be read ({error}): write the secret into it, readable for the node alone."
        raise ConfigurationError(msg) from error
    if len(secret) < shortest:
        msg = f"The secret in {path} has {len(secret)} characters where {shortest} are needed: make a longer one."
        raise ConfigurationError(msg)
    return secret


def read_token(path: Path) -> str:
    """Read the token of the status page, at least 16 characters."""
    return read_secret(path, _TOKEN)
