"""The routes of a hospital with parts that others wrote, Orthanc and dcmtk: run by hand with ``-m slow``."""

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from archive import free_port, until
from drawn_films import ramp, write_dicom
from orthanc import Orthanc, dicomweb_plugin, is_installed
from pydicom import dcmread

from anomalib_cxr.node.node import Node

Start = Callable[..., Node]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed() or shutil.which("storescu") is None, reason="no Orthanc or no dcmtk here"),
]
KINDS = ["capture", "report", "segmentation"]
CALLING = ["MODALITY", "ORTHANC"]


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    return [write_dicom(tmp_path / f"{number}.dcm", ramp(64, 48, 0.1 * number, 0.9)) for number in range(3)]


@pytest.fixture
def archives(tmp_path: Path) -> Iterator[Callable[..., Orthanc]]:
    started: list[Orthanc] = []

    def begin(node_port: int, route: bool = False) -> Orthanc:
        started.append(Orthanc(tmp_path / "orthanc", node_port, route))
        return started[-1]

    yield begin
    for archive in started:
        archive.stop()


def storescu(port: int, called: str, *films: Path) -> None:
    subprocess.run(
        ["storescu", "-aet", "MODALITY", "-aec", called, "127.0.0.1", str(port), *map(str, films)], check=True
    )


def holds_films_and_results(archive: Orthanc, films: list[Path], with_films: bool) -> None:
    """Each study has its film and one object of each kind, under identifiers that dcmtk reads."""
    for film in films:
        data = dcmread(film)
        (study,) = (
            one for one in archive.get("/studies?expand")
            if one["MainDicomTags"]["StudyInstanceUID"] == data.StudyInstanceUID
        )  # fmt: skip
        assert study["PatientMainDicomTags"]["PatientID"] == data.PatientID
        modalities = sorted(archive.get(f"/series/{series}")["MainDicomTags"]["Modality"] for series in study["Series"])
        assert modalities == sorted(["OT", "SEG", "SR", *(["DX"] if with_films else [])])
        instances = archive.get(f"/studies/{study['ID']}/instances")
        assert len(instances) == len(modalities)
        for instance in instances:
            content = archive.file(instance["ID"])
            told = subprocess.run(["dcmdump", "-"], input=content, capture_output=True, check=True).stdout
            assert data.StudyInstanceUID.encode() in told
            kept = dcmread(io.BytesIO(content))
            assert str(kept.PatientName) == str(data.PatientName)


def test_from_storescu_to_orthanc(
    start: Start, settings: dict, archives: Callable[..., Orthanc], films: list[Path]
) -> None:
    archive = archives(free_port())
    node = start(destinations=[archive.settings()], results=KINDS)
    storescu(node.receiver.port, "NODE", *films)
    until(lambda: node.journal.counts()["sent"] == 3, 60)
    holds_films_and_results(archive, films, False)
    query = ["-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=4711", "-k", "StudyInstanceUID"]
    found = subprocess.run(
        ["findscu", "-S", "-aet", "MODALITY", "-aec", "ORTHANC", *query, "127.0.0.1", str(archive.dicom)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for film in films:
        assert dcmread(film).StudyInstanceUID in found.stdout + found.stderr
    archive.stop()
    later = write_dicom(films[0].with_name("later.dcm"), ramp(64, 48, 0.5, 0.9))
    storescu(node.receiver.port, "NODE", later)
    until(lambda: node.journal.counts()["failed"] == 1, 60)
    archive.start()  # it was down for a while
    until(lambda: node.journal.counts()["sent"] == 4, 60)
    holds_films_and_results(archive, [*films, later], False)


def test_from_orthanc_by_routing_and_back(
    start: Start, settings: dict, archives: Callable[..., Orthanc], films: list[Path]
) -> None:
    port = free_port()
    archive = archives(port, route=True)
    node = start(
        receive={"ae_title": "NODE", "calling": CALLING, "port": port}, destinations=[archive.settings()], results=KINDS
    )
    storescu(archive.dicom, "ORTHANC", *films)
    until(lambda: node.journal.counts()["sent"] == 3, 60)
    holds_films_and_results(archive, films, True)
    storescu(node.receiver.port, "NODE", *films)  # once more, by another way: no second finding
    assert [row["arrivals"] for row in node.journal.query("SELECT arrivals FROM films WHERE state = 'sent'")] == [2] * 3
    holds_films_and_results(archive, films, True)


@pytest.mark.skipif(dicomweb_plugin() is None, reason="no DICOMweb plugin here")
def test_pulled_from_orthanc_and_stored_there_by_web(
    start: Start, archives: Callable[..., Orthanc], films: list[Path]
) -> None:
    archive = archives(free_port())
    web = {"url": f"http://127.0.0.1:{archive.http}/dicom-web"}
    storescu(archive.dicom, "ORTHANC", *films)
    node = start(
        destinations=[{"name": "web", "web": web}], results=KINDS,
        pull=[{"web": web, "modality": ["DX"], "days": 3650, "every_s": 0.5}],
    )  # fmt: skip
    until(lambda: node.journal.counts()["sent"] == 3, 60)
    holds_films_and_results(archive, films, True)
    assert node.pullers[0].look() == 0
