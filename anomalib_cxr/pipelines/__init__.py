"""Long jobs that the `anomalib` command starts as subcommands."""

from anomalib_cxr.pipelines.cross_validate import CrossValidate
from anomalib_cxr.pipelines.patch_ablation import PatchAblation
from anomalib_cxr.pipelines.prepare import Prepare

#: Subcommand and the pipeline it runs.
SUBCOMMANDS = {"cross-validate": CrossValidate, "patch-ablation": PatchAblation, "prepare": Prepare}

__all__ = ["SUBCOMMANDS", "CrossValidate", "PatchAblation", "Prepare"]
