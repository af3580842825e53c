"""The status page: what it shows, to whom, and that nothing a film says becomes a part of it."""

import csv
import http.client
import io
import json
import logging
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from archive import Archive, send, until
from drawn_films import ramp, write_dicom, write_png
from nodes import configuration, drawn_settings

from anomalib_cxr.deploy import ExportedDetector, commission
from anomalib_cxr.node.logs import JsonLines, logger
from anomalib_cxr.node.node import Node
from anomalib_cxr.node.settings import ConfigurationError

Start = Callable[..., Node]

NAME = '<script>alert("x")</script>'
HOSTILE = {"PatientName": NAME, "PatientID": "=1+1", "AccessionNumber": "@x"}


def get(
    node: Node, path: str, method: str = "GET", host: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    assert node.page is not None
    connection = http.client.HTTPConnection("127.0.0.1", node.page.port, timeout=20)
    connection.request(method, path, headers=headers | ({} if host is None else {"Host": host}))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


class Seen(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def leads(self) -> list[str]:
        return [str(value) for _, attrs in self.tags for name, value in attrs.items() if name in {"src", "href"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that has scored three films, one of them hostile by its texts, and failed on a fourth."""
    folder = tmp_path_factory.mktemp("page")
    settings = drawn_settings(folder)
    for number in range(20):
        write_png(folder / "normal" / f"{number}.png", np.full((32, 32), 0.4 + 0.01 * number, np.float32))
    model = folder / "model" / "model.onnx"
    commission(ExportedDetector(model), folder / "normal", progress=False).save(folder / "site.json")
    models = [settings["models"][0] | {"site": "site.json"}]
    films = [
        write_dicom(folder / "a.dcm", ramp(40, 30, 0.2, 0.9)),
        write_dicom(folder / "b.dcm", ramp(40, 30, 0.4, 0.9), **HOSTILE),
        write_dicom(folder / "c.dcm", ramp(40, 30, 0.1, 0.5)),
        write_dicom(folder / "d.dcm", ramp(40, 30, 0.2, 0.9), Rows=65535, Columns=65535),
    ]
    with Archive() as archive:
        changes = {"page": {"port": 0}, "models": models, "destinations": [archive.settings()]}
        node = Node(configuration(folder, settings | changes))
        assert send(node.receiver.port, *films) == [0] * 4
        until(lambda: node.journal.counts()["sent"] == 3 and node.journal.counts()["failed"] == 1)
        yield node
        node.stop()


def test_what_a_person_sees(node: Node, tmp_path: Path) -> None:
    status, headers, content = get(node, "/")
    assert status == 200
    page = Seen(content)
    assert "NOT FOR DIAGNOSIS" in page.text
    assert "its header claims 65535 x 65535 pixels" in page.text
    assert re.search(r"3\s*sent", page.text)
    assert "20 films of the site, false-positive rate 0.1" in page.text
    assert "3 films scored (orange), 20 of the reference (grey)" in page.text
    assert "No drift alarm; evidence of a change is 10^" in page.text
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")

    page = Seen(get(node, "/worklist")[2])
    assert NAME in page.text  # as text
    assert not [tag for tag, _ in page.tags if tag == "script"]
    films = [lead for lead in page.leads() if re.fullmatch(r"/film/\d+\?model=[0-9a-f]{64}", lead)]
    p_values = [float(value) for value in re.findall(r"data-name=p>([^<]+)<", get(node, "/worklist")[2].decode())]
    assert p_values == sorted(p_values)
    assert len(films) == len(p_values) == 3

    film = Seen(get(node, films[0])[2])
    assert NAME in film.text
    assert [attrs.get("src") for tag, attrs in film.tags if tag == "script"] == ["/slider.js"]
    assert ("input", "range") in [(tag, attrs.get("type")) for tag, attrs in film.tags]
    for lead in (*page.leads(), *film.leads(), "/style.css", "/slider.js"):
        assert lead.startswith("/"), lead  # nothing is fetched from elsewhere
        assert get(node, lead)[0] == 200, lead
    for name, kind in (("film.jpg", "image/jpeg"), (f"map/{node.shelf.hashes[0][:16]}", "image/png")):
        assert get(node, f"{films[0].partition('?')[0]}/{name}")[1]["Content-Type"] == kind


def test_the_table_has_no_formula(node: Node) -> None:
    status, _, content = get(node, "/worklist.csv")
    assert status == 200
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    (hostile,) = (row for row in rows if row["PatientName"] == NAME)
    assert (hostile["PatientID"], hostile["AccessionNumber"]) == ("'=1+1", "'@x")
    assert len(rows) == 3


def test_paths_that_lead_nowhere(node: Node) -> None:
    model = node.shelf.hashes[0][:16]
    for path in (
        "/nothing", "/film/0", "/film/99999999999999999", "/film/4", "/film/1/map/../../journal.sqlite",
        f"/film/1/map/{model}/..", "/film/1/film.png", "/film/1%2F..", f"/film/4/small/{model}",
        "/film/1/map/0000000000000000",
    ):  # fmt: skip
        assert get(node, path)[0] == 404, path
    assert get(node, "/worklist?page=99999999999")[0] == 200
    assert get(node, "/worklist?page=-1")[0] == 200
    assert get(node, f"/film/1?model={quote('; DROP TABLE films; --')}")[0] == 200
    assert get(node, "/", method="POST")[0] == 501


def test_only_this_machine_reads_it_without_a_token(node: Node) -> None:
    for host in ("127.0.0.1", "localhost:8104", "[::1]:80"):
        assert get(node, "/", host=host)[0] == 200
    for host in ("evil.example", "evil.example:8104", "127.0.0.1.evil.example", ""):
        status, _, content = get(node, "/worklist", host=host)
        assert status == 403
        assert b"Patient" not in content


def test_with_a_token_it_is_asked_for(start: Start, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short\n")
    with pytest.raises(ConfigurationError, match="has 5 characters where 16 are needed"):
        start(page={"port": 0, "token_file": "token"})
    token = "a-token-of-24-characters"
    (tmp_path / "token").write_text(f"{token}\n")
    node = start(page={"port": 0, "token_file": "token"})
    basic = b64encode(f"me:{token}".encode()).decode()
    for given, status in (
        ("", 401), (f"Bearer {token}", 200), (f"Bearer {token}x", 401), ("Bearer", 401), (f"Basic {basic}", 200),
        ("Basic !!!", 401), (f"Basic {b64encode(b'me:wrong').decode()}", 401), ("Bearer \xff", 401),
    ):  # fmt: skip
        for path in ("/", "/metrics", "/worklist.csv", "/film/1/film.jpg"):
            found = get(node, path, host="node.example", Authorization=given)[0]
            assert found == (404 if status == 200 and "film" in path else status), (given, path)
    assert "WWW-Authenticate" in get(node, "/")[1]


def test_metrics_are_prometheus_text(node: Node) -> None:
    text = get(node, "/metrics")[2].decode()
    samples = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = re.fullmatch(r'([a-z_0-9]+(?:\{(?:[a-z]+="[^"]*",?)*\})?) (\S+)', line).groups()  # type: ignore[union-attr]
            samples[name] = float(value)
    assert samples['anomalib_cxr_node_films{state="sent"}'] == 3
    assert samples['anomalib_cxr_node_films{state="failed"}'] == 1
    assert samples['anomalib_cxr_node_waiting{for="to score"}'] == 0
    assert samples['anomalib_cxr_node_scored{model="mean"}'] == 3
    assert samples['anomalib_cxr_node_store_answer_seconds_bucket{le="+Inf"}'] == 4
    assert samples["anomalib_cxr_node_store_answer_seconds_count"] == 4
    types = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
    assert len(types) == len({name for name, _ in types})


def test_a_drift_is_announced(start: Start, settings: dict, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = "\n".join(f"{number}.png,{value}" for number, value in enumerate(rng.uniform(0.3, 0.5, 100)))
    (tmp_path / "earlier.csv").write_text(f"image,score\n{rows}\n")
    node = start(page={"port": 0}, models=[settings["models"][0] | {"reference": "earlier.csv"}])
    sha = node.shelf.hashes[0]
    for number in range(60):  # brighter by far than all before
        node.journal.arrived(f"{number:064x}", "d", "MODALITY", f"{number}.dcm", "ignored", "drawn")
        node.journal.query("INSERT INTO scores VALUES (?, 'mean', ?, 0.9, NULL, 0.5, 1, 0, NULL)", number + 1, sha)
    page = Seen(get(node, "/")[2]).text
    assert "DRIFT ALARM" in page
    assert 'drift_alarm{model="mean"} 1' in get(node, "/metrics")[2].decode()


def test_lines_of_the_log_name_no_patient(start: Start, archive: Archive, tmp_path: Path) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        node = start(destinations=[archive.settings()])
        good = write_dicom(tmp_path / "a.dcm", ramp(40, 30, 0.2, 0.9), PatientName="Secret^Name", PatientID="77123")
        bad = write_dicom(tmp_path / "b.dcm", ramp(40, 30, 0.2, 0.9), Rows=65535, PatientName="Secret^Name")
        send(node.receiver.port, good, bad)
        send(node.receiver.port, good, calling="NOBODY")
        until(lambda: all(f'"{word}"' in stream.getvalue() for word in ("sent", "failed")))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    events = [line["event"] for line in lines]
    for expected in ("started", "arrived", "scored", "sent", "failed", "rejected"):
        assert expected in events
    assert "Secret" not in stream.getvalue()
    assert "77123" not in stream.getvalue()
    assert "2.25." not in stream.getvalue()
    assert "1.2.826" not in stream.getvalue()  # pydicom's own root, of which the film's identifiers are
