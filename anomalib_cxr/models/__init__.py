"""Anomaly detectors for chest radiographs, as Anomalib modules."""

from anomalib_cxr.models.alpha_gan import AlphaGAN
from anomalib_cxr.models.anat_paste import AnatPaste
from anomalib_cxr.models.auto_encoder import AutoEncoder
from anomalib_cxr.models.deep_svdd import DeepSVDD
from anomalib_cxr.models.ensemble import Ensemble
from anomalib_cxr.models.f_anogan import FAnoGAN
from anomalib_cxr.models.feature_density import FeatureDensity
from anomalib_cxr.models.feature_distillation import FeatureDistillation
from anomalib_cxr.models.multires_patch_ssl import MultiResPatchSSL
from anomalib_cxr.models.patch_svdd import PatchSVDD
from anomalib_cxr.models.poisson_interpolation import PoissonInterpolation
from anomalib_cxr.models.squid import SQUID

__all__ = [
    "SQUID",
    "AlphaGAN",
    "AnatPaste",
    "AutoEncoder",
    "DeepSVDD",
    "Ensemble",
    "FAnoGAN",
    "FeatureDensity",
    "FeatureDistillation",
    "MultiResPatchSSL",
    "PatchSVDD",
    "PoissonInterpolation",
]
