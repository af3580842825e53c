"""Processes of Python that begin with the heavy packages loaded: a fresh interpreter, ten seconds sooner.

A server that has imported what Anomalib and this package stand on, and neither of them, nor any test, is forked for
each process. It was started as any Python is, so the start-up hook is in place; what depends on the start itself (the
hook's switch, options of the interpreter) needs a process of its own.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent
_HEAVY = [
    "torch._dynamo", "torchvision.models", "torchmetrics.functional", "lightning.pytorch", "timm", "kornia", "cv2",
    "pandas", "scipy.stats", "scipy.ndimage", "skimage.measure", "sklearn.metrics", "jsonargparse", "rich.console",
    "matplotlib.pyplot", "yaml",
]  # fmt: skip
_START = "ANOMALIB_CXR_PLUGIN"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_HEAVY)


def run_python(
    arguments: Sequence[str], cwd: Path, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` and wait for it.

    Args:
        arguments: ``["-c", code, …]``, or a script and its arguments.
        cwd: Its folder.
        timeout: Seconds after which it is killed.
        **environment: Variables beside those of this process.

    Returns:
        As of :func:`subprocess.run`, with its output as text.

    Raises:
        subprocess.TimeoutExpired: If it takes longer.
        ValueError: If a variable would have had to be there at the start.
    """
    if _START in environment:
        msg = f"{_START} is read when Python starts: use a process of its own."
        raise ValueError(msg)
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "out", Path(folder) / "err"
        process = _context.Process(
            target=_run, args=(list(arguments), str(cwd), dict(os.environ) | environment, str(output), str(errors))
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(arguments), timeout)
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in (output, errors)]
        return subprocess.CompletedProcess(list(arguments), process.exitcode, *texts)


def _run(arguments: list[str], cwd: str, environment: dict[str, str], output: str, errors: str) -> None:
    """What the forked process does."""
    for number, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]  # the platform's, as in any process
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    first = "" if arguments[0] == "-c" else str(Path(arguments[0]).parent)
    added = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *added, *(path for path in sys.path if path and not Path(path).is_relative_to(TESTS))]
    warnings.resetwarnings()
    if environment.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    else:
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
    del sys.modules["__main__"]
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            path = Path(errors).with_name("code.py")
            path.write_text(arguments[1])
            runpy.run_path(str(path), run_name="__main__")
        else:
            sys.argv = list(arguments)
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
