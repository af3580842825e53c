"""Fixtures shared by all tests."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# Tiny tensors gain nothing from threads, and lose much where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

SHARED = Path(os.environ.setdefault("CXR_SHARED", str(Path(__file__).resolve().parents[2] / "shared")))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real radiographs, or skip."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED}: set CXR_SHARED to a folder that holds data/")
    return SHARED


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands set up logging for good: the next test, or example of a docstring, would see their handlers."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers and not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)
    root.setLevel(level)
