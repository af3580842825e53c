"""Which films are scored."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from anomalib_cxr.deploy.secondary_capture import MANUFACTURER
from anomalib_cxr.node.configuration import Rule

if TYPE_CHECKING:
    from pydicom import Dataset

_DESCRIPTIONS = ("StudyDescription", "SeriesDescription", "ProtocolName")
_LONGEST = 64  # characters that the standard allows


def why_ignored(header: "Dataset", rules: Sequence[Rule]) -> str | None:
    """Say why a film is not scored.

    Args:
        header: Of the film.
        rules: Rules, of which it must meet one.

    Returns:
        None if it is scored; else the reason, without names.
    """
    if _text(header, "Manufacturer") == MANUFACTURER.lower():
        return "it is a result of this software"
    misses = [_miss(header, rule) for rule in rules]
    return None if None in misses else "; or ".join(dict.fromkeys(miss for miss in misses if miss))


def _miss(header: "Dataset", rule: Rule) -> str | None:
    """What a film lacks of a rule, or None."""
    for keyword, wanted in (("Modality", rule.modality), ("BodyPartExamined", rule.body_part)):
        if wanted and _text(header, keyword) not in _lower(wanted):
            return f"its {keyword} is none of the rule's"
    if rule.view and _text(header, "ViewPosition") not in _lower(rule.view):
        return "its ViewPosition is none of the rule's"
    described = [text for keyword in _DESCRIPTIONS if (text := _text(header, keyword))]
    if rule.description and not _any(described, rule.description):
        return "its descriptions meet no pattern of the rule"
    if _any(described, rule.not_description):
        return "a description meets a pattern that the rule excludes"
    return None


def _any(texts: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(text, pattern) for text in texts for pattern in _lower(patterns))


def _lower(values: Iterable[str]) -> list[str]:
    return [value.lower() for value in values]


def _text(header: "Dataset", keyword: str) -> str:
    return str(header.get(keyword) or "").strip().lower()[:_LONGEST]
