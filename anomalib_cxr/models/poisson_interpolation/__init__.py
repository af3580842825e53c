"""PoissonInterpolation: what share of another film is blended in, and where."""

from anomalib_cxr.models.poisson_interpolation.lightning_model import PoissonInterpolation

__all__ = ["PoissonInterpolation"]
