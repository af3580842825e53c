"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("CXR_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real radiographs, or skip."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED}: set CXR_SHARED to a folder that holds data/")
    return SHARED
