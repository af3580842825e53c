"""Logs as lines of JSON, without patient data: films are known by the SHA-256 of their SOP Instance UID."""

import json
import logging
import sys
import warnings
from datetime import datetime, timezone
from typing import Any

logger = logging.getLogger("anomalib_cxr.node")

#: Digits of a film's hash that a line shows.
DIGITS = 16


def event(name: str, level: int = logging.INFO, **facts: Any) -> None:
    """Write a line.

    Args:
        name: What happened.
        level: How bad it is.
        **facts: Numbers and short texts; ``film`` is cut to the hash's first digits.
    """
    if "film" in facts:
        facts["film"] = str(facts["film"])[:DIGITS]
    logger.log(level, name, extra={"facts": facts})


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, event, and the event's facts. No traceback: it might quote a film."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        return json.dumps(line | getattr(record, "facts", {}), default=str)


def set_up() -> None:
    """Make this process write our lines to its standard error, and nothing that libraries say of data sets."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # They quote identifiers and values of films.
    for library in ("pynetdicom", "pydicom", "highdicom", "dicomweb_client", "urllib3"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")
