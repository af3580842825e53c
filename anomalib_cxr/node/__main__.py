"""`anomalib-cxr-node`: films arrive by DICOM, results go back."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from queue import SimpleQueue

from anomalib_cxr.node.logs import set_up
from anomalib_cxr.node.settings import ConfigurationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a node until it is told to stop (SIGTERM, SIGINT); SIGHUP makes it read its models again.

    Args:
        arguments: Command line without the program's name; None takes that of the process.

    Returns:
        0; 2 if it could not start.
    """
    parser = argparse.ArgumentParser(
        prog="anomalib-cxr-node",
        description="A DICOM node beside the archive: films that are sent to it are scored by models that `anomalib "
        "export` wrote, and results are sent back. For research, not for diagnosis.",
    )
    parser.add_argument("--config", required=True, help="node.yaml")
    parser.add_argument("--check", action="store_true", help="check the configuration and its models, and stop")
    chosen = parser.parse_args(arguments)
    set_up()
    try:
        from anomalib_cxr.node.configuration import load

        configuration = load(chosen.config)  # a mistake in the file is told before libraries are missed
        from anomalib_cxr.node.journal import JournalError
        from anomalib_cxr.node.node import Node
        from anomalib_cxr.node.shelf import Shelf
    except ImportError as error:
        print(f'anomalib-cxr-node: {error.name} is not installed: pip install "anomalib-cxr[node]"', file=sys.stderr)
        return 2
    except ConfigurationError as error:
        print(f"anomalib-cxr-node: {error}", file=sys.stderr)
        return 2
    try:
        if chosen.check:
            Shelf(configuration.models)
            print(f"{chosen.config} can be used.")
            return 0
        os.umask(0o077)  # films are for the node alone
        node = Node(configuration)
    except (ConfigurationError, JournalError, OSError) as error:
        print(f"anomalib-cxr-node: {error}", file=sys.stderr)
        return 2
    told: SimpleQueue[int] = SimpleQueue()
    signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    for each in signals:
        signal.signal(each, lambda number, _: told.put(number))
    try:
        while told.get() == getattr(signal, "SIGHUP", None):
            node.reload(chosen.config)
    finally:
        node.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
