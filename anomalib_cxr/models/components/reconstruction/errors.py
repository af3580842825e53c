"""How far a reconstruction is from its image: a loss to train by, and a map to score by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from anomalib.models.components.base import DynamicBufferMixin
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models.components.full_precision import full_precision
from anomalib_cxr.models.components.patch_encoder import PatchEncoder

ErrorName = Literal["squared", "absolute", "ssim", "perceptual", "uncertainty"]


def on_both_sides_of_zero(images: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) on [−1, 1] of images (B, 3 or 1, H, W) in [0, 1]."""
    return 2 * images.mean(dim=1, keepdim=True) - 1


class ReconstructionError(nn.Module):
    """Base of errors. Images are grey, on [−1, 1]; a new one is an entry of :data:`ERRORS`."""

    #: Channels that the decoder gives.
    channels = 1

    def loss(self, images: Tensor, made: Tensor) -> Tensor:
        """Scalar to train by; the mean of the map unless it is said otherwise.

        Args:
            images: (B, 1, H, W).
            made: (B, channels, H, W), the decoder's.
        """
        return self.map(images, made).mean()

    def map(self, images: Tensor, made: Tensor) -> Tensor:
        """Error of each pixel, (B, 1, H, W), 0 or more; arguments as of :meth:`loss`."""
        raise NotImplementedError


class SquaredError(ReconstructionError):
    """(x − x̂)²."""

    def map(self, images: Tensor, made: Tensor) -> Tensor:
        """Squared differences."""
        return (images - made).square()


class AbsoluteError(ReconstructionError):
    """|x − x̂|."""

    def map(self, images: Tensor, made: Tensor) -> Tensor:
        """Absolute differences."""
        return (images - made).abs()


class UncertaintyError(ReconstructionError):
    """Squared error over the variance that the decoder expects at that pixel (Mao et al., ICIP 2020, "AE-U").

    The decoder gives x̂ and s, the logarithm of the variance. Loss: the mean of ``e^(−s) (x − x̂)² + s``, which is least
    where s is the logarithm of the expected squared error. Map: ``e^(−s) (x − x̂)²``, about 1 where an image errs as
    much as normal ones do.

    The variance has a smooth floor (ours) of one grey value of 8 bits, squared: at a rim that is black on all
    training films there would be nothing to divide by.
    """

    channels = 2
    floor = 2 * torch.log(torch.tensor(2 / 255)).item()

    def loss(self, images: Tensor, made: Tensor) -> Tensor:
        """Negative log likelihood of a Gaussian, without its constants and doubled."""
        return (self.map(images, made) + self.log_variance(made)).mean()

    def map(self, images: Tensor, made: Tensor) -> Tensor:
        """Errors in expected ones."""
        return (images - made[:, :1]).square() * (-self.log_variance(made)).exp()

    def log_variance(self, made: Tensor) -> Tensor:
        """s, (B, 1, H, W), of the decoder's (B, 2, H, W)."""
        return self.floor + F.softplus(made[:, 1:].float() - self.floor)


class StructuralError(ReconstructionError):
    """1 − SSIM (Wang et al. 2004), on grey values of [0, 1], by a Gaussian window.

    The loss is the mean over windows that lie inside the image, and the map is theirs, enlarged to the image.

    Args:
        window: Side of the window in pixels.
        sigma: Standard deviation of its weights in pixels.
    """

    weights: Tensor

    def __init__(self, window: int = 11, sigma: float = 1.5) -> None:
        super().__init__()
        places = torch.arange(window) - (window - 1) / 2
        weights = (-(places**2) / (2 * sigma**2)).exp()
        self.register_buffer("weights", weights / weights.sum(), persistent=False)

    def loss(self, images: Tensor, made: Tensor) -> Tensor:
        """Mean over the windows."""
        return self.of_windows(images, made).mean()

    def map(self, images: Tensor, made: Tensor) -> Tensor:
        """Windows' errors at pixels."""
        return F.interpolate(
            self.of_windows(images, made), size=images.shape[-2:], mode="bilinear", align_corners=False
        )

    def of_windows(self, images: Tensor, made: Tensor) -> Tensor:
        """1 − SSIM of each window inside, (B, 1, H − 10, W − 10) for a window of 11."""
        x, y = (((one.float() + 1) / 2).clamp(0, 1) for one in (images, made))
        with full_precision(images.device):
            stacked = torch.cat([x, y, x * x, y * y, x * y], dim=1)
            kernel = self.weights.expand(5, 1, 1, -1)
            means = F.conv2d(F.conv2d(stacked, kernel, groups=5), kernel.mT, groups=5)
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = means.split(1, dim=1)
        luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        variances = (mean_xx - mean_x**2) + (mean_yy - mean_y**2)
        structure = (2 * (mean_xy - mean_x * mean_y) + 0.03**2) / (variances + 0.03**2)
        return 1 - luminance * structure


class PerceptualError(DynamicBufferMixin, ReconstructionError):
    """Difference of a frozen encoder's features, over their size in the image (Shvetsova et al., IEEE Access 2021).

    Features are standardised channel by channel, differences are absolute, and divided by the mean absolute feature of
    the image: ``|f(x) − f(x̂)| / mean |f(x)|``. As published the encoder is VGG-19 up to relu4_2, and the channels'
    statistics are ImageNet's; here it is any timm model at one of its levels, and the statistics are those of the
    normal training films (:meth:`fit`).

    Args:
        backbone: timm model.
        pre_trained: Take timm's weights.
        weights_path: Local weights file for it.
        layer: Level of the encoder, -1 the last.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        pre_trained: bool = False,
        weights_path: str | Path | None = None,
        layer: int = 2,
    ) -> None:
        super().__init__()
        self.encoder = PatchEncoder(backbone, pre_trained=pre_trained, weights_path=weights_path, layers=(layer,))
        self.encoder.requires_grad_(False)
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("std", torch.empty(0))
        self.train()

    def train(self, mode: bool = True) -> "PerceptualError":
        """The encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def moments(self, images: Tensor) -> Tensor:
        """Mean and mean square of each channel of each image, (B, 2, C): what :meth:`fit` takes.

        Args:
            images: (B, 1, H, W) on [−1, 1].
        """
        features = self._raw(images).double()
        return torch.stack([features.mean(dim=(2, 3)), features.square().mean(dim=(2, 3))], dim=1)

    def fit(self, moments: Tensor) -> None:
        """Take the channels' statistics.

        Args:
            moments: (n, 2, C), :meth:`moments` of normal images.
        """
        mean, square = moments.double().mean(dim=0)
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        self.mean = mean.float()
        # A channel that never answers has nothing to divide by.
        self.std = torch.where(deviation > 0, deviation, 1.0).float()

    def map(self, images: Tensor, made: Tensor) -> Tensor:
        """Mean over channels, enlarged to pixels.

        Raises:
            RuntimeError: If :meth:`fit` has not been called.
        """
        if not self.mean.numel():
            msg = "The perceptual error knows no statistics of features: train the model, or load a checkpoint."
            raise RuntimeError(msg)
        wanted, found = self._standardised(images), self._standardised(made)
        size = wanted.abs().mean(dim=(1, 2, 3), keepdim=True)
        errors = (wanted - found).abs().mean(dim=1, keepdim=True) / size
        return F.interpolate(errors, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def _standardised(self, images: Tensor) -> Tensor:
        features = self._raw(images)
        return (features - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def _raw(self, images: Tensor) -> Tensor:
        return self.encoder.levels((images + 1) / 2)[0]


#: Errors by the name that detectors' argument ``error`` has.
ERRORS: Mapping[str, type[ReconstructionError]] = {
    "squared": SquaredError,
    "absolute": AbsoluteError,
    "ssim": StructuralError,
    "perceptual": PerceptualError,
    "uncertainty": UncertaintyError,
}
