"""Long jobs that the `anomalib` command starts as subcommands."""

from anomalib_cxr.pipelines.patch_ablation import PatchAblation
from anomalib_cxr.pipelines.prepare import Prepare

#: Subcommand and the pipeline it runs.
SUBCOMMANDS = {"patch-ablation": PatchAblation, "prepare": Prepare}

__all__ = ["SUBCOMMANDS", "PatchAblation", "Prepare"]
