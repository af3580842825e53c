"""Pretrained weights that need not be fetched."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def weights_come_later() -> Iterator[None]:
    """Keep timm from fetching pretrained weights that a checkpoint's own replace at once: it may be offline."""
    builder: Any = importlib.import_module("timm.models._builder")
    original = builder.load_pretrained
    builder.load_pretrained = lambda *_, **__: None
    try:
        yield
    finally:
        builder.load_pretrained = original
