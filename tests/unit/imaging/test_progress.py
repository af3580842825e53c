"""Progress where a person looks on, and where nobody does."""

import io
import logging
import multiprocessing
import sys

import pytest
from rich.console import Console
from rich.live import Live

from anomalib_cxr.imaging import progress as module
from anomalib_cxr.imaging.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watched(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal in place of stderr; made inside of a test, since pytest sets its own when a test begins."""
    for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    assert list(progress(iter("abc"), "Reading", 3)) == ["a", "b", "c"]
    assert "Reading" in terminal.getvalue()
    assert "0/3" in terminal.getvalue()


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_PROCID"])
def test_other_processes_are_silent(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    terminal = watched(monkeypatch)
    monkeypatch.setenv(variable, "1")
    assert list(progress([1, 2], "Reading")) == [1, 2]
    assert not terminal.getvalue()


def test_worker_processes_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert list(progress([1, 2], "Reading")) == [1, 2]
    assert not terminal.getvalue()


def test_a_live_display_of_rich_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    with Live("theirs", console=Console(file=terminal, force_terminal=True), auto_refresh=False):
        before = terminal.getvalue()
        assert list(progress([1, 2], "Reading")) == [1, 2]
        assert terminal.getvalue() == before
    assert "Reading" not in terminal.getvalue()


def test_a_log_file_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """80 films, 2 s each, so lines after 60 s and 120 s."""
    for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO):
        assert len(list(progress(range(80), "Reading"))) == 80
    assert caplog.messages == ["Reading: 29 of 80, 2 min left", "Reading: 59 of 80, 1 min left"]
    assert not stream.getvalue()
