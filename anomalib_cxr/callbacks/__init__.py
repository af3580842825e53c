"""Lightning callbacks for any Anomalib model; they know neither models nor data sets of ours."""

from anomalib_cxr.callbacks.film_assessor import FilmAssessor
from anomalib_cxr.callbacks.heat_map_logger import HeatMapLogger
from anomalib_cxr.callbacks.predictions_writer import PredictionsWriter
from anomalib_cxr.callbacks.visualizer import HeatMapVisualizer

__all__ = ["FilmAssessor", "HeatMapLogger", "HeatMapVisualizer", "PredictionsWriter"]
