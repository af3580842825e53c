"""AlphaGAN: an autoencoder whose images and whose codes are both judged by a critic."""

from anomalib_cxr.models.alpha_gan.lightning_model import AlphaGAN

__all__ = ["AlphaGAN"]
