"""FAnoGAN: a generator of normal images, an encoder that inverts it, and what is lost on the way there and back."""

from anomalib_cxr.models.f_anogan.lightning_model import FAnoGAN

__all__ = ["FAnoGAN"]
