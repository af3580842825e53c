"""Long jobs that the `anomalib` command starts as subcommands."""

from anomalib_cxr.pipelines.commission import Commission
from anomalib_cxr.pipelines.cross_validation.pipeline import CrossValidate
from anomalib_cxr.pipelines.patch_ablation import PatchAblation
from anomalib_cxr.pipelines.prepare import Prepare
from anomalib_cxr.pipelines.report.pipeline import Report

#: Subcommand and the pipeline it runs.
SUBCOMMANDS = {
    "commission": Commission,
    "cross-validate": CrossValidate,
    "patch-ablation": PatchAblation,
    "prepare": Prepare,
    "report": Report,
}

__all__ = ["SUBCOMMANDS", "Commission", "CrossValidate", "PatchAblation", "Prepare", "Report"]
