"""Each line of the stock command's log once, and an export without the diary of its exporters."""

import functools
import logging
import os
import sys
from collections.abc import Callable

from rich.logging import RichHandler

from anomalib_cxr.imaging.progress import is_watched
from anomalib_cxr.plugin.wrapping import Wrapping

#: Set to 1, this environment variable shows what is left out for readability: exporters' logs, tracebacks of mistakes.
DEBUG = "ANOMALIB_CXR_DEBUG"

#: Loggers of exporters, which write a line for each node of a graph.
_EXPORTERS = ("onnx_ir", "onnxscript", "torch.onnx")


def is_debugging() -> bool:
    """Whether the user wants to see everything."""
    return os.environ.get(DEBUG, "0") not in {"", "0"}


def log_each_line_once() -> None:
    """Take away all handlers of the console but one (ours).

    Anomalib's ``configure_logger`` adds a plain one and rich's, and Lightning has some of its own. Rich's stays on a
    terminal, where it knows to stand above a live bar; anywhere else the plain one, which breaks no lines. Handlers of
    other kinds, such as those of files, stay.
    """
    root = logging.getLogger()
    rich = [handler for handler in root.handlers if isinstance(handler, RichHandler)]
    plain = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
    kept = (rich if is_watched(sys.stdout) else plain)[-1:]
    for handler in [*rich, *plain] if kept else ():
        if handler not in kept:
            root.removeHandler(handler)
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logger = logging.getLogger(name)
        logger.propagate = True
        for handler in list(logger.handlers):
            if isinstance(handler, RichHandler) or type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
    for name in () if is_debugging() else _EXPORTERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _wrap_configure(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def configure_logger(level: int | str = logging.INFO) -> None:
        stock(level)
        log_each_line_once()

    return configure_logger


#: Where the command sets its log up.
LOG_LINES = Wrapping([("anomalib.cli.cli", "configure_logger", _wrap_configure)])
