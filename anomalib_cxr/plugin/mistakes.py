"""Mistakes of the user are answered in a sentence, with exit status 2; errors of programs keep their traceback."""

import dis
import functools
import sys
from collections.abc import Callable
from types import TracebackType

from lightning.fabric.utilities.exceptions import MisconfigurationException

from anomalib_cxr.plugin.log_lines import DEBUG, is_debugging
from anomalib_cxr.plugin.names import refuse_unknown_names
from anomalib_cxr.plugin.wrapping import Wrapping

_RAISE = dis.opmap["RAISE_VARARGS"]


def is_answer(error: BaseException) -> bool:
    """Say whether an error's message was written for the user.

    Args:
        error: What was caught.

    Returns:
        True for errors of our classes, for what a ``raise`` of ours raised, and for Lightning's of wrong arguments. An
        error that Python, torch or Anomalib raised, though in the midst of our code, is no answer.
    """
    return isinstance(error, MisconfigurationException) or _is_ours(type(error).__module__) or _raised_by_us(error)


def answer(error: BaseException) -> str:
    """Put an error into a sentence.

    Args:
        error: What was caught.

    Returns:
        Its message; of one that a loader's worker process sent with its traceback, the last line of that.
    """
    text = str(error).strip() or type(error).__name__
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2] or text
    return text


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "anomalib_cxr"


def _raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame is of ours, and stands at a ``raise``."""
    innermost: TracebackType | None = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None or not _is_ours(innermost.tb_frame.f_globals.get("__name__", "")):
        return False
    return innermost.tb_frame.f_code.co_code[innermost.tb_lasti] == _RAISE


def _wrap_main(stock: Callable[[], None]) -> Callable[[], None]:
    """Answer a mistake in a sentence."""

    @functools.wraps(stock)
    def main() -> None:
        try:
            refuse_unknown_names(sys.argv[1:])
            stock()
        except Exception as error:
            if is_debugging() or not is_answer(error):
                raise
            sys.stdout.flush()
            print(f"anomalib: {answer(error)}\n({DEBUG}=1 shows the traceback.)", file=sys.stderr)
            sys.exit(2)

    return main


#: The `anomalib` command.
MISTAKES = Wrapping([("anomalib.cli.cli", "main", _wrap_main)])
