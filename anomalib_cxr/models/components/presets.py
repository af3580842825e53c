"""Presets: named sets of arguments, of which each can be overridden."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from anomalib_cxr.checks import check_choice


def resolve_preset(presets: Mapping[str, Mapping[str, Any]], preset: str, **given: Any) -> SimpleNamespace:
    """Fill in what the user left out (ours).

    Args:
        presets: Each preset's arguments.
        preset: Name of one.
        **given: Arguments as the user gave them, None for those left out. Those that no preset has stay as they are.

    Returns:
        The given arguments, and those of the preset in place of None.

    Raises:
        ValueError: If there is no such preset.
    """
    chosen = presets[check_choice("preset", preset, presets)]
    return SimpleNamespace(**{name: chosen.get(name) if value is None else value for name, value in given.items()})
