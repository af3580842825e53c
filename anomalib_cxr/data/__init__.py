"""Datasets and datamodules of chest radiographs.

Classes load on first use, so that drawing or splitting alone does not import Anomalib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_cxr.data.base import RadiographDataModule
    from anomalib_cxr.data.dataset import RadiographDataset
    from anomalib_cxr.data.phantom_cxr import PhantomCXR
    from anomalib_cxr.data.zhanglab import ZhangLab

_MODULES = {
    "PhantomCXR": "phantom_cxr",
    "RadiographDataModule": "base",
    "RadiographDataset": "dataset",
    "ZhangLab": "zhanglab",
}

__all__ = ["PhantomCXR", "RadiographDataModule", "RadiographDataset", "ZhangLab"]


def __getattr__(name: str) -> Any:
    """Import a class of :data:`__all__` at its first use."""
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
