"""Chest X-ray anomaly detection for Anomalib.

Importing this package is cheap: models, datamodules and the plugin load on use. The detectors and datamodules, and
``read_radiograph``, ``segment_lungs`` and ``ExportedDetector``, can be had from here, each loading its own room only:

    >>> import anomalib_cxr
    >>> anomalib_cxr.read_radiograph.__module__
    'anomalib_cxr.imaging.radiograph'
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers take it for True; `typing` would make the import of this package ten times longer
if TYPE_CHECKING:
    from anomalib_cxr.anatomy import segment_lungs as segment_lungs
    from anomalib_cxr.data import *  # noqa: F403
    from anomalib_cxr.deploy import ExportedDetector as ExportedDetector
    from anomalib_cxr.imaging import read_radiograph as read_radiograph
    from anomalib_cxr.models import *  # noqa: F403
else:
    from anomalib_cxr.lazy import at_first_use

    __getattr__, __dir__ = at_first_use(__name__)
