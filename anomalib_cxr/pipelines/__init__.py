"""Long jobs that the `anomalib` command starts as subcommands."""

from anomalib_cxr.pipelines.prepare import Prepare

#: Subcommand and the pipeline it runs.
SUBCOMMANDS = {"prepare": Prepare}

__all__ = ["SUBCOMMANDS", "Prepare"]
