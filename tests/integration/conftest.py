"""Fixtures of the whole runs."""

from pathlib import Path

import pytest
from tiny_radiographs import TinyRadiographs


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def tiny(tiny_root: Path) -> TinyRadiographs:
    return TinyRadiographs(tiny_root)
