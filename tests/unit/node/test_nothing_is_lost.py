"""The process is killed between any two steps, or the disk is full: no film is lost, and none is sent twice."""

import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from archive import Archive, free_port, send, until
from drawn_films import ramp, write_dicom
from pydicom import Dataset, dcmread

from anomalib_cxr import files
from anomalib_cxr.deploy.secondary_capture import secondary_capture
from anomalib_cxr.node import worker as worker_module
from anomalib_cxr.node.configuration import Configuration, Retry
from anomalib_cxr.node.finding import Finding
from anomalib_cxr.node.intake import Intake
from anomalib_cxr.node.journal import Journal, JournalError
from anomalib_cxr.node.node import Node
from anomalib_cxr.node.sender import Sender
from anomalib_cxr.node.shelf import Shelf
from anomalib_cxr.node.spool import Spool
from anomalib_cxr.node.worker import Worker

Start = Callable[..., Node]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program catches it."""


class Killer:
    """Kills at the n-th step."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class Shelves:
    """An archive by identifier, as archives file: the same object again is no second one."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.takes = 0

    def send(self, paths: Sequence[Path]) -> Iterator[str | None]:
        for path in paths:
            content = path.read_bytes()
            uid = str(dcmread(path).SOPInstanceUID)
            assert self.objects.setdefault(uid, content) == content  # never the same name for something else
            self.takes += 1
            yield None


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    return [write_dicom(tmp_path / f"{number}.dcm", ramp(32, 32, 0.2 * number, 0.9)) for number in range(2)]


def steps_counted(patched: pytest.MonkeyPatch, killer: Killer) -> None:
    """Let the killer strike before, in and after each transaction, and around each file that is written."""
    step, store, write = Journal._step, Spool.store, worker_module.written_atomically

    @contextmanager
    def killed_step(journal: Journal) -> Iterator[sqlite3.Connection]:
        killer.step()
        with step(journal) as db:
            yield db
            killer.step()  # not yet committed
        killer.step()

    def killed_store(spool: Spool, file: str, content: bytes) -> None:
        killer.step()
        store(spool, file, content)
        killer.step()

    @contextmanager
    def killed_write(path: Path, **options: Any) -> Iterator[Path]:
        with write(path, **options) as temporary:
            yield temporary
        killer.step()

    patched.setattr(Journal, "_step", killed_step)
    patched.setattr(Spool, "store", killed_store)
    patched.setattr(worker_module, "written_atomically", killed_write)


def plain_capture(finding: Finding) -> Dataset:
    return secondary_capture(np.zeros((2, 2, 3), np.uint8), finding.path, "drawn", finding.model.sha256, 1)


def live(given: Configuration, shelf: Shelf, films: list[Path], answered: set[Path], archive: Shelves) -> None:
    """What a process does from its start until nothing is left to do; who got no answer sends again."""
    journal = Journal(given.folder / "journal.sqlite")
    try:
        spool = Spool(given.folder)
        take = Intake(journal, spool, given.rules, lambda: shelf.hashes, lambda: None)
        assert all(take.adopt(file) for file in spool.sweep({file for _, file in journal.files()}))
        worker = Worker(given, journal, spool, shelf)
        sender = Sender("archive", archive, journal, spool, Retry())
        for film in films:
            if film not in answered:
                take(film.read_bytes(), str(dcmread(film).SOPInstanceUID), "MODALITY")
                answered.add(film)
        while worker.work() or sender.work():
            pass
        assert journal.counts()["sent"] == len(films) == sum(journal.counts().values())
    finally:
        journal.close()  # as the system does to a process that is killed


def test_killed_between_any_two_steps(
    configured: Callable[..., Configuration], films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step at which a process could end is tried."""
    monkeypatch.setattr(worker_module, "MAKERS", {"capture": plain_capture})  # the picture is what takes the time
    shelf = Shelf(configured().models)
    films = films[:1]
    (uid,) = (str(dcmread(film).SOPInstanceUID) for film in films)
    kills, ended = 0, False
    while not ended:
        given = configured(folder=str(tmp_path / f"node-{kills}"))
        archive, answered = Shelves(), set[Path]()
        with monkeypatch.context() as patched:
            steps_counted(patched, Killer(kills + 1))
            try:
                live(given, shelf, films, answered, archive)
                ended = True
            except Killed:
                kills += 1
        live(given, shelf, films, answered, archive)
        assert len(archive.objects) == 1
        assert [str(dcmread(path).SOPInstanceUID) for path in (given.folder / "films").rglob("*.dcm")] == [uid]
    assert kills > 15


def test_a_film_on_which_the_process_dies_again_and_again_lets_others_pass_and_is_given_up(
    configured: Callable[..., Configuration], films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = configured()
    journal, spool, shelf = Journal(tmp_path / "journal.sqlite"), Spool(tmp_path), Shelf(given.models)
    take = Intake(journal, spool, given.rules, lambda: shelf.hashes, lambda: None)
    for film in films:
        take(film.read_bytes(), str(dcmread(film).SOPInstanceUID), "MODALITY")
    deadly = journal.query("SELECT file FROM films WHERE id = 1")[0]["file"]
    read, order = worker_module.read_radiograph, []

    def dies(path: Path) -> Any:
        order.append(path == spool.film(deadly))
        if order[-1]:
            raise Killed
        if order == [True, False]:
            raise OSError(errno.ENOSPC, "No space left on device")  # that passes
        return read(path)

    monkeypatch.setattr(worker_module, "read_radiograph", dies)
    worker = Worker(given, journal, spool, shelf)
    for _ in range(30):
        try:
            while worker.work():
                pass
            break
        except Killed:
            continue
    assert order[:2] == [True, False]  # the second film did not wait for the first
    assert order.count(True) == worker_module.DEATHS
    (row,) = journal.query("SELECT state, reason, next_try FROM films WHERE id = 1")
    assert (row["state"], row["next_try"]) == ("failed", None)
    assert row["reason"] == "the process ended 8 times while it was scored"
    journal.close()


def test_kill_9_of_the_command(settings: dict, archive: Archive, tmp_path: Path) -> None:
    port = free_port()
    settings |= {"destinations": [archive.settings()], "receive": settings["receive"] | {"port": port}}
    films = [write_dicom(tmp_path / f"{number}.dcm", ramp(32, 32, 0.1 * number, 0.9)) for number in range(6)]
    assert burst(settings, tmp_path, port, films, kills=1) == {"sent": 6}
    uids = [data.SOPInstanceUID for data in archive.received]
    assert len(set(uids)) == 6


def burst(settings: dict, folder: Path, port: int, films: list[Path], kills: int) -> dict[str, int]:
    """Send films while the command is killed so often, at random moments; the states of the journal at last."""
    config, rng = folder / "node.yaml", random.Random(0)
    config.write_text(yaml.safe_dump(settings))
    waiting = list(films)
    for kill in range(kills):
        process = start_command(config)
        timer = threading.Timer(rng.uniform(0.05, 1.0), process.kill)
        timer.start()
        left = len(films) * (kills - kill) // (kills + 1)  # for those after this one
        while len(waiting) > left and deliver(port, waiting[0]):
            waiting.pop(0)
        process.wait()
    process = start_command(config)
    try:
        while waiting:
            assert deliver(port, waiting.pop(0))
        path = folder / settings["folder"] / "journal.sqlite"
        until(lambda: set(states(path)) <= {"sent", "failed"}, 120)
    finally:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)  # two signals at once come in no order
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    events = [json.loads(line)["event"] for line in config.with_suffix(".log").read_text().splitlines()]
    assert events[-2:] == ["models exchanged", "stopped"]
    return states(path)


def deliver(port: int, film: Path) -> bool:
    """Send a film; whether it was answered with success."""
    try:
        return send(port, film) == [0]
    except RuntimeError:  # the association ended in the midst
        return False


#: The command, where neither torch nor what needs it can be imported.
WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "lightning", "anomalib", "pandas", "skimage", "sklearn"]))
from anomalib_cxr.node.__main__ import main
sys.exit(main())
"""


def start_command(config: Path) -> "subprocess.Popen[bytes]":
    """The command, when it says that it has started."""
    path = config.with_suffix(".log")
    with path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", WITHOUT_TORCH, "--config", str(config)], stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        start = log.tell()
    until(lambda: b'"started"' in path.read_bytes()[start:] or process.poll() is not None, 120)
    assert process.poll() is None, path.read_text()
    return process


def states(path: Path) -> dict[str, int]:
    """States in a journal, read beside its node."""
    with closing(sqlite3.connect(path, timeout=30)) as db:
        return dict(db.execute("SELECT state, COUNT(*) FROM films GROUP BY state").fetchall())


def test_a_second_node_on_one_journal_refuses(start: Start, configured: Callable[..., Configuration]) -> None:
    first = start()
    with pytest.raises(JournalError, match="is in use by another node: stop that one, or give this one a folder"):
        Node(configured())
    assert first.journal.counts()["sent"] == 0


def test_a_journal_of_another_version_or_none_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalError, match="is a journal of format 99"):
        Journal(path)
    path = tmp_path / "another.sqlite"
    path.write_text("not a data base" * 100)
    for _ in range(2):  # the second: nothing is left locked
        with pytest.raises(JournalError, match="cannot be opened as a journal"):
            Journal(path)
    assert path.read_text().startswith("not a")


def test_a_full_disk_refuses_films(
    start: Start, films: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = start()
    port = node.receiver.port
    with monkeypatch.context() as patched:
        patched.setattr(node.spool, "reserve", 2**62)
        assert send(port, films[0]) == [0xA700]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Spool, "store", full)
        assert send(port, films[0]) == [0xA700]

    @contextmanager
    def full_journal(_: Journal) -> Iterator[sqlite3.Connection]:
        raise sqlite3.OperationalError("database or disk is full")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_step", full_journal)
        assert send(port, films[0]) == [0xA700]
    assert sum(node.journal.counts().values()) == 0
    assert send(port, films[0]) == [0]  # and when there is room again, it goes on
    until(lambda: node.journal.counts()["failed"])


def test_a_lost_journal_loses_no_film_and_files_of_others_stay(
    start: Start, archive: Archive, films: list[Path], tmp_path: Path
) -> None:
    theirs = [tmp_path / "node" / name for name in ("films/a/film.dcm", "films/note.tmp", "results/a/b/c.txt")]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"theirs")
    node = start(destinations=[])
    broken = node.intake(b"no film", "1.2.3", "MODALITY")
    assert broken.state == "failed"
    send(node.receiver.port, *films)
    until(lambda: node.journal.counts()["scored"] == 2)
    node.stop()
    for path in (tmp_path / "node").glob("journal.sqlite*"):
        path.unlink()
    second = start(destinations=[archive.settings()])
    until(lambda: second.journal.counts()["sent"] == 2)
    assert second.journal.counts()["failed"] == 1
    assert send(second.receiver.port, *films) == [0, 0]
    assert len(archive.received) == 2
    assert all(path.read_bytes() == b"theirs" for path in theirs)


def test_new_folders_are_on_the_disk_with_their_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    waited: list[Path] = []
    monkeypatch.setattr(files, "_wait_for_disk", waited.append)
    spool = Spool(tmp_path)
    spool.store("ab/ab-1.dcm", b"film")
    assert {path for path in waited if path.is_dir()} == {spool.films / "ab", spool.films}
    assert [path.suffix for path in waited if not path.is_dir()] == [".tmp"]
    waited.clear()
    spool.store("ab/ab-2.dcm", b"film")
    assert {path for path in waited if path.is_dir()} == {spool.films / "ab"}


def test_the_clock_set_back_lets_nothing_wait_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.arrived("a" * 64, "d", "MODALITY", "a.dcm")
    film = journal.next_to_score()
    assert film is not None
    journal.not_scored(film.id, "it was busy", time.time() + 600)
    assert journal.next_to_score() is None
    assert journal.next_to_score(time.time() - 365 * 86400) is not None
    journal.scored(film.id, [], ["o"], ["archive"])
    (delivery,) = journal.due("archive")
    journal.not_delivered(delivery, "down", time.time() + 600)
    assert journal.due("archive") == []
    assert journal.due("archive", now=time.time() + 601) != []
    assert journal.due("archive", now=time.time() - 365 * 86400) != []
    journal.close()
