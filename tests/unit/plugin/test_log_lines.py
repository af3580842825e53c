"""One handler of the console is left, of the kind that fits it."""

import io
import logging
import sys

import pytest
from anomalib.loggers import configure_logger
from rich.logging import RichHandler

from anomalib_cxr.plugin.log_lines import log_each_line_once


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without handlers; made inside of a test, since pytest adds its own when a test begins."""
    for name in (None, "lightning", "lightning.fabric", "lightning.pytorch", "onnx_ir", "onnxscript", "torch.onnx"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "level", logging.NOTSET)
        monkeypatch.setattr(logger, "propagate", logger.propagate)
    logging.Logger.manager._clear_cache()


@pytest.mark.parametrize(("stream", "kind"), [(Terminal(), RichHandler), (io.StringIO(), logging.StreamHandler)])
def test_one_handler_is_left(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, kind: type) -> None:
    begin(monkeypatch)
    monkeypatch.setattr(sys, "stdout", stream)
    root, file = logging.getLogger(), logging.NullHandler()
    for _ in range(2):  # a process may do it again
        logging.getLogger("lightning.pytorch").addHandler(logging.StreamHandler())
        configure_logger()
        root.addHandler(file)
        log_each_line_once()
        assert [type(handler) for handler in root.handlers if handler is not file] == [kind]
        assert file in root.handlers
        assert not logging.getLogger("lightning.pytorch").handlers
        assert logging.getLogger("lightning.pytorch").propagate


def test_exporters_are_quiet_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    begin(monkeypatch)
    monkeypatch.setenv("ANOMALIB_CXR_DEBUG", "1")
    configure_logger()
    log_each_line_once()
    assert logging.getLogger("onnx_ir.passes").isEnabledFor(logging.INFO)
    monkeypatch.delenv("ANOMALIB_CXR_DEBUG")
    log_each_line_once()
    assert not logging.getLogger("onnx_ir.passes").isEnabledFor(logging.INFO)
    assert logging.getLogger("onnx_ir.passes").isEnabledFor(logging.WARNING)
