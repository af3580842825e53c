"""Datasets and datamodules of chest radiographs.

Classes load on first use, so that drawing or splitting alone does not import Anomalib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_cxr.data.base import RadiographDataModule
    from anomalib_cxr.data.chexpert import CheXpert
    from anomalib_cxr.data.dataset import RadiographDataset
    from anomalib_cxr.data.mimic_cxr import MIMICCXR
    from anomalib_cxr.data.padchest import PadChest
    from anomalib_cxr.data.phantom_cxr import PhantomCXR
    from anomalib_cxr.data.radiograph_table import RadiographTable
    from anomalib_cxr.data.rsna import RSNA
    from anomalib_cxr.data.zhanglab import ZhangLab

_MODULES = {
    "CheXpert": "chexpert",
    "MIMICCXR": "mimic_cxr",
    "PadChest": "padchest",
    "PhantomCXR": "phantom_cxr",
    "RSNA": "rsna",
    "RadiographDataModule": "base",
    "RadiographDataset": "dataset",
    "RadiographTable": "radiograph_table",
    "ZhangLab": "zhanglab",
}

__all__ = [
    "MIMICCXR",
    "RSNA",
    "CheXpert",
    "PadChest",
    "PhantomCXR",
    "RadiographDataModule",
    "RadiographDataset",
    "RadiographTable",
    "ZhangLab",
]


def __getattr__(name: str) -> Any:
    """Import a class of :data:`__all__` at its first use."""
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
