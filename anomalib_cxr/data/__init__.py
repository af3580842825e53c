"""Datasets and datamodules of chest radiographs."""

from anomalib_cxr.data.base import RadiographDataModule
from anomalib_cxr.data.chexpert import CheXpert
from anomalib_cxr.data.dataset import RadiographDataset
from anomalib_cxr.data.items import RadiographBatch, RadiographItem
from anomalib_cxr.data.med_ad import MedAD
from anomalib_cxr.data.mimic_cxr import MIMICCXR
from anomalib_cxr.data.nih import NIH
from anomalib_cxr.data.nlm_tb import NLMTB
from anomalib_cxr.data.padchest import PadChest
from anomalib_cxr.data.phantom_cxr import PhantomCXR
from anomalib_cxr.data.radiograph_table import RadiographTable
from anomalib_cxr.data.rsna import RSNA
from anomalib_cxr.data.vindr_cxr import VinDrCXR
from anomalib_cxr.data.zhanglab import ZhangLab

__all__ = [
    "MIMICCXR",
    "NIH",
    "NLMTB",
    "RSNA",
    "CheXpert",
    "MedAD",
    "PadChest",
    "PhantomCXR",
    "RadiographBatch",
    "RadiographDataModule",
    "RadiographDataset",
    "RadiographItem",
    "RadiographTable",
    "VinDrCXR",
    "ZhangLab",
]
