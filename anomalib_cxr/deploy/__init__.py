"""Exported models at work: files in, scores and heat maps out, without torch, Lightning or Anomalib."""

from anomalib_cxr.deploy.commissioning import Shift, Site, SiteError, commission
from anomalib_cxr.deploy.detector import ExportedDetector, FilePrediction, Prediction, Thresholds
from anomalib_cxr.deploy.folder import Summary, predict_folder
from anomalib_cxr.deploy.judge import Judge, Verdict
from anomalib_cxr.deploy.metadata import ExportedModelError, read_metadata
from anomalib_cxr.deploy.overlay import overlay
from anomalib_cxr.deploy.shards import Shard, ShardError, merge_shards

__all__ = [
    "ExportedDetector",
    "ExportedModelError",
    "FilePrediction",
    "Judge",
    "Prediction",
    "Shard",
    "ShardError",
    "Shift",
    "Site",
    "SiteError",
    "Summary",
    "Thresholds",
    "Verdict",
    "commission",
    "merge_shards",
    "overlay",
    "predict_folder",
    "read_metadata",
]
