"""Load and faults with the command itself: run by hand with ``-m slow -s``, which prints the README's figures."""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from archive import FILM_CLASSES, Archive, free_port, send, until
from drawn_films import ramp, write_dicom
from nodes import configuration
from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE
from test_nothing_is_lost import WITHOUT_TORCH, burst, states

from anomalib_cxr.node.node import Node

pytestmark = pytest.mark.slow

FILMS = int(os.environ.get("CXR_NODE_FILMS", "500"))
ASSOCIATIONS = 4


class Counter(Archive):
    """Keeps identifiers alone, or the load would fill the memory of the test."""

    def __init__(self) -> None:
        super().__init__()
        self.uids: list[str] = []
        self.answer = self._count

    def _count(self, data: Any) -> int:
        self.uids.append(str(data.SOPInstanceUID))
        self.received.clear()
        return 0


def test_500_films_over_four_associations(settings: dict, tmp_path: Path) -> None:
    port, page = free_port(), free_port()
    archive = Counter()
    settings |= {
        "receive": settings["receive"] | {"port": port}, "page": {"port": page}, "destinations": [archive.settings()],
    }  # fmt: skip
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(settings))
    rng = np.random.default_rng(0)
    picture = np.clip(ramp(2500, 2000, 0.2, 0.9) + rng.normal(0, 0.02, (2500, 2000)).astype(np.float32), 0, 1)
    film = write_dicom(tmp_path / "film.dcm", picture)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", WITHOUT_TORCH, "--config", str(tmp_path / "node.yaml")], stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    try:
        until(lambda: b"started" in (tmp_path / "log").read_bytes(), 120)
        answers: list[tuple[float, float, int | None]] = []  # when, seconds, status

        def modality(number: int) -> None:
            data = dcmread(film)
            node = AE("MODALITY")
            node.add_requested_context(FILM_CLASSES[1], "1.2.840.10008.1.2.1")
            association = node.associate("127.0.0.1", port, ae_title="NODE")
            for one in range(FILMS // ASSOCIATIONS):
                data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
                data.PixelData = int(number * 10000 + one).to_bytes(4, "little") + data.PixelData[4:]
                began = time.perf_counter()
                status = association.send_c_store(data).get("Status")
                answers.append((time.monotonic(), time.perf_counter() - began, status))
            association.release()

        began = time.monotonic()
        threads = [threading.Thread(target=modality, args=(number,)) for number in range(ASSOCIATIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        all_sent = time.monotonic() - began
        journal = tmp_path / settings["folder"] / "journal.sqlite"
        until(lambda: states(journal) == {"sent": FILMS}, 7200)
        took = time.monotonic() - began
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{page}/metrics", timeout=20).read().decode()
        status = Path(f"/proc/{process.pid}/status").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        archive.stop()
    answers.sort()
    seconds = [one[1] for one in answers]
    tenth = -(-len(seconds) // 10)
    highest = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    inside = [line for line in metrics.splitlines() if "store_answer_seconds" in line and not line.startswith("#")]
    print(
        f"\n{FILMS} films of 2000 x 2500 over {ASSOCIATIONS} associations: taken in {all_sent:.0f} s, sent after "
        f"{took:.0f} s ({3600 * FILMS / took:.0f} an hour); answers median {statistics.median(seconds):.2f} s, 99th "
        f"percentile {np.percentile(seconds, 99):.2f} s; first tenth {statistics.median(seconds[:tenth]):.2f} s, last "
        f"tenth {statistics.median(seconds[-tenth:]):.2f} s; memory at most {highest / 1024:.0f} MiB"
    )
    print("\n".join(inside))
    assert {status for *_, status in answers} == {0}
    assert len(archive.uids) == len(set(archive.uids)) == FILMS
    assert highest < 2**21  # KiB
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["event"] for line in lines} <= {"started", "arrived", "scored", "sent", "stopped"}


def test_20_times_kill_9_in_a_burst(settings: dict, archive: Archive, tmp_path: Path) -> None:
    port = free_port()
    settings |= {"destinations": [archive.settings()], "receive": settings["receive"] | {"port": port}}
    films = [write_dicom(tmp_path / f"{number}.dcm", ramp(256, 256, 0.01 * number, 0.9)) for number in range(84)]
    found = burst(settings, tmp_path, port, films, kills=20)
    uids = [data.SOPInstanceUID for data in archive.received]
    print(f"\n84 films, 20 kills: {found}, {len(uids)} objects taken, {len(set(uids))} different")
    assert found == {"sent": 84}
    assert len(set(uids)) == 84
    named = {data.SourceImageSequence[0].ReferencedSOPInstanceUID for data in archive.received}
    assert named == {dcmread(film).SOPInstanceUID for film in films}


def test_a_disk_that_is_really_full(settings: dict, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        with Archive() as archive:
            node = Node(configuration(tmp_path, settings | {"folder": str(disk / "node"), "reserve_gib": 8 / 1024,
                                                            "destinations": [archive.settings()]}))  # fmt: skip
            films = [write_dicom(tmp_path / f"{n}.dcm", ramp(1200, 1200, 0.02 * n, 0.9)) for n in range(16)]
            answers = send(node.receiver.port, *films)
            print(f"\n16 films of 2.7 MiB on a disk of 24 MiB: {[f'{one:04X}' for one in answers if one is not None]}")
            assert set(answers) == {0, 0xA700}
            taken = answers.count(0)
            assert sum(node.journal.counts().values()) == taken
            assert len([path for path in node.spool.films.rglob("*.dcm") if path.stat().st_size]) == taken
            node.retention.days = 0
            for _ in range(600):  # as films end, there is room for the results of others
                node.retention.clean(time.time() + 1)
                if node.journal.counts()["sent"] == taken:
                    break
                time.sleep(0.1)
            node.stop()
            counts = states(disk / "node" / "journal.sqlite")
            print(counts, len(archive.received))
            assert counts == {"sent": taken}
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
