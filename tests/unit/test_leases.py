"""Leases: one holder at a time, on whatever machine; free again when it has ended, died or fallen silent."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import Timeout

from anomalib_cxr import leases
from anomalib_cxr.leases import Lease, LeaseLostError, is_free, last_lease

# Holds a lease and writes without end, unless it loses it.
HOLDER = """
import os, sys, time
from pathlib import Path
from anomalib_cxr import leases
leases.STALE_AFTER = float(sys.argv[2])
if len(sys.argv) > 3:
    leases._machine = lambda: sys.argv[3]
folder = Path(sys.argv[1])
lease = leases.Lease.take(folder)
lease.keep_beating(lambda reason: (print(reason, flush=True), os._exit(75)))
while True:
    with open(folder / "work.txt", "a") as file:
        file.write("x")
    time.sleep(0.01)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *arguments], stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (folder / "work.txt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def on_another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Lease:
    with monkeypatch.context() as patch:
        patch.setattr(leases, "_machine", lambda: "another one")
        lease = Lease.take(folder, job="7")
    assert lease is not None
    return lease


def silent_for(lease: Lease, seconds: float) -> None:
    now = time.time()
    os.utime(lease.path, (now - seconds, now - seconds))


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first = Lease.take(tmp_path / "job", job="12", digest="abc")
    assert first is not None
    assert Lease.take(tmp_path / "job") is None
    assert Lease.take(tmp_path / "other") is not None
    held = last_lease(tmp_path / "job")
    assert held is not None
    assert (held.number, held.ended, held.content["pid"]) == (1, None, os.getpid())
    first.release("failed", "ValueError: no")
    ended = last_lease(tmp_path / "job")
    assert ended is not None
    assert (ended.ended, ended.content["reason"], ended.content["job"]) == ("failed", "ValueError: no", "12")
    second = Lease.take(tmp_path / "job")
    assert second is not None
    assert [entry.number for entry in leases.leases(tmp_path / "job")] == [2, 1]


def test_a_lease_of_another_machine_is_free_after_a_stated_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STALE_AFTER", 40.0)
    lease = on_another_machine(monkeypatch, tmp_path)
    monkeypatch.setattr(leases, "STALE_AFTER", 5.0)  # the holder's own time counts
    silent_for(lease, 35)
    assert Lease.take(tmp_path) is None
    lease.beat()
    silent_for(lease, 45)
    lease.beat()
    assert Lease.take(tmp_path) is None, "it has beaten again"
    silent_for(lease, 45)
    assert Lease.take(tmp_path) is not None


@pytest.mark.parametrize("shift", [-1e6, 1e6])
def test_the_clock_of_this_machine_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    lease = on_another_machine(monkeypatch, tmp_path)
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + shift)
        assert not is_free(last_lease(tmp_path))
    silent_for(lease, 301)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + shift)
        assert is_free(last_lease(tmp_path))


class _NoLock(SimpleNamespace):
    """Of another machine: its locks are not seen here."""

    def acquire(self, timeout: float) -> None:
        pass

    def release(self) -> None:
        pass


@pytest.mark.parametrize("same_machine", [True, False])
def test_of_many_takers_of_a_stale_lease_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_machine: bool
) -> None:
    silent_for(on_another_machine(monkeypatch, tmp_path), 301)
    together = threading.Barrier(6)

    def free_for_all(entry: leases.Entry) -> bool:
        free = is_free(entry)
        together.wait(30)  # all have seen it free before the first one takes it
        return free

    monkeypatch.setattr(leases, "is_free", free_for_all)
    if not same_machine:
        monkeypatch.setattr(leases, "_lock", lambda _: _NoLock())
    got: list[Lease | None] = []
    takers = [threading.Thread(target=lambda: got.append(Lease.take(tmp_path))) for _ in range(6)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert len(got) == 6
    assert sum(lease is not None for lease in got) == 1
    assert len(list((tmp_path / "leases").glob("*.json"))) == 2


def test_a_holder_that_was_killed_on_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    holder = start(tmp_path, "300")
    assert Lease.take(tmp_path) is None
    holder.kill()
    holder.wait()
    assert Lease.take(tmp_path) is not None


def test_a_holder_that_died_before_it_could_write_is_followed_later(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "0001.json").touch()
    assert Lease.take(tmp_path) is None
    os.utime(tmp_path / "leases" / "0001.json", (1, 1))
    assert Lease.take(tmp_path) is not None


def test_a_holder_that_sleeps_too_long_loses_its_lease_and_stops_writing(tmp_path: Path) -> None:
    holder = start(tmp_path, "2", "another machine")
    try:
        holder.send_signal(signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)  # the signal may take a moment
        os.utime(tmp_path / "leases" / "0001.json", (1, 1))
        mine = Lease.take(tmp_path)
        assert mine is not None
        holder.send_signal(signal.SIGCONT)
        output, _ = holder.communicate(timeout=60)
    finally:
        holder.kill()
        holder.wait()
    assert holder.returncode == 75
    assert f"has gone to process {os.getpid()} on " in output
    mine.beat()


def test_who_lost_a_lease_says_nothing_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = on_another_machine(monkeypatch, tmp_path)
    silent_for(lost, 301)
    mine = Lease.take(tmp_path)
    with pytest.raises(LeaseLostError, match="has gone to process"):
        lost.beat()
    lost.release("done")
    assert "ended" not in json.loads(lost.path.read_text())
    assert not is_free(last_lease(tmp_path))
    assert mine is not None
    mine.release("done")
    assert is_free(last_lease(tmp_path))


def test_a_lock_that_is_held_keeps_its_number(tmp_path: Path) -> None:
    """Who has the lock and not yet the file is about to make it."""
    (tmp_path / "leases").mkdir()
    lock = leases._lock(tmp_path / "leases" / "0001.json")
    lock.acquire(timeout=0)
    assert Lease.take(tmp_path) is None
    with pytest.raises(Timeout):
        leases._lock(tmp_path / "leases" / "0001.json").acquire(timeout=0)
    lock.release()
    assert Lease.take(tmp_path) is not None
