"""What Anomalib and torchmetrics lack: thresholds, p-values and intervals for image-level scores.

Functions of scores and labels, and thin metric classes for Anomalib's Evaluator. Nothing here knows a model or data.
Each name loads its module at its first use, so that an inferencer without torch and SciPy has its p-values from here.
"""

from anomalib_cxr.lazy import at_first_use

TYPE_CHECKING = False  # type checkers take it for True
if TYPE_CHECKING:
    from anomalib_cxr.metrics.bootstrap import Interval, Run, bootstrap_difference, bootstrap_intervals
    from anomalib_cxr.metrics.conformal import conformal_p_values, outside_of_normal
    from anomalib_cxr.metrics.curves import CurveBand, precision_recall_band, roc_band
    from anomalib_cxr.metrics.delong import DeLongTest, delong_covariance, delong_test
    from anomalib_cxr.metrics.evaluator_metrics import (
        AUPR,
        AUROC,
        Accuracy,
        F1Score,
        Precision,
        Sensitivity,
        SensitivityAtSpecificity,
        Specificity,
        SpecificityAtSensitivity,
    )
    from anomalib_cxr.metrics.finding_metrics import (
        FindingAccuracy,
        FindingAUROC,
        FindingCases,
        FindingEvaluator,
        FindingF1Score,
    )
    from anomalib_cxr.metrics.findings import finding_table
    from anomalib_cxr.metrics.image_level import image_metrics
    from anomalib_cxr.metrics.martingale import DriftAlarm, drift_alarm
    from anomalib_cxr.metrics.predictions import (
        PredictionsError,
        check_same_images,
        read_predictions,
        write_predictions,
    )
    from anomalib_cxr.metrics.thresholds import (
        OperatingPoint,
        best_f1_threshold,
        normal_threshold,
        sensitivity_at_specificity,
        sensitivity_threshold,
        specificity_at_sensitivity,
    )
else:
    __getattr__, __dir__ = at_first_use(__name__)

__all__ = [
    "AUPR",
    "AUROC",
    "Accuracy",
    "CurveBand",
    "DeLongTest",
    "DriftAlarm",
    "F1Score",
    "FindingAUROC",
    "FindingAccuracy",
    "FindingCases",
    "FindingEvaluator",
    "FindingF1Score",
    "Interval",
    "OperatingPoint",
    "Precision",
    "PredictionsError",
    "Run",
    "Sensitivity",
    "SensitivityAtSpecificity",
    "Specificity",
    "SpecificityAtSensitivity",
    "best_f1_threshold",
    "bootstrap_difference",
    "bootstrap_intervals",
    "check_same_images",
    "conformal_p_values",
    "delong_covariance",
    "delong_test",
    "drift_alarm",
    "finding_table",
    "image_metrics",
    "normal_threshold",
    "outside_of_normal",
    "precision_recall_band",
    "read_predictions",
    "roc_band",
    "sensitivity_at_specificity",
    "sensitivity_threshold",
    "specificity_at_sensitivity",
    "write_predictions",
]
