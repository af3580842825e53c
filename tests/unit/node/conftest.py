"""A node on loopback between a sender and an archive, all of pynetdicom, with a model built by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from archive import Archive
from nodes import configuration, drawn_settings

from anomalib_cxr.node import working
from anomalib_cxr.node.configuration import Configuration
from anomalib_cxr.node.node import Node


@pytest.fixture(autouse=True, scope="module")
def _haste() -> Iterator[None]:
    """Look for work more often than a node need."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(working, "_IDLE_S", 0.02)
        yield


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as archive:
        yield archive


@pytest.fixture
def settings(tmp_path: Path) -> dict:
    return drawn_settings(tmp_path)


@pytest.fixture
def configured(settings: dict, tmp_path: Path) -> Callable[..., Configuration]:
    """The configuration, with changes."""
    return lambda **changes: configuration(tmp_path, settings | changes)


@pytest.fixture
def start(configured: Callable[..., Configuration]) -> Iterator[Callable[..., Node]]:
    """Start a node; it is stopped at the end."""
    started: list[Node] = []

    def begin(**changes: object) -> Node:
        started.append(Node(configured(**changes)))
        return started[-1]

    yield begin
    for node in started:
        node.stop()
