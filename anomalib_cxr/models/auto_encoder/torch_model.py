"""AutoEncoder's network, error and score: what is exported."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_cxr.checks import check_choice
from anomalib_cxr.models.components.reconstruction.bottlenecks import (
    GaussianBottleneck,
    MemoryBottleneck,
    SpatialBottleneck,
    VectorBottleneck,
)
from anomalib_cxr.models.components.reconstruction.convolutional import HALVINGS, ConvDecoder, ConvEncoder, check_side
from anomalib_cxr.models.components.reconstruction.corruption import CoarseNoise, ErasedSquare, NoCorruption
from anomalib_cxr.models.components.reconstruction.errors import (
    ERRORS,
    ErrorName,
    PerceptualError,
    on_both_sides_of_zero,
)
from anomalib_cxr.models.components.reconstruction.global_generator import GlobalDecoder, GlobalEncoder
from anomalib_cxr.models.components.reconstruction.reconstructor import Reconstructor
from anomalib_cxr.models.components.reconstruction.scoring import ErrorScore, Relative
from anomalib_cxr.models.components.reconstruction.unet import UNet

Variant = Literal["ae", "dae", "vae", "memory", "context", "spatial"]
Network = Literal["conv", "unet", "pix2pixhd"]
Score = Literal["error", "code_norm"]


class AutoEncoderModel(nn.Module):
    """Reconstructs images and scores them by what was lost, or by how far their code lies from the prior.

    Args:
        image_size: Side of the square images, a multiple of 16 from 32 on.
        variant: What a reconstruction passes through, or has to undo; see
            :class:`~anomalib_cxr.models.auto_encoder.lightning_model.AutoEncoder`.
        network: Encoder and decoder.
        width: Channels of the first layer.
        hidden_size: Units between features and code; None for ``unet``, which has no code.
        latent_size: Numbers of the code, of each cell for ``spatial``; None for ``unet``.
        error: What is trained on, and what the map is of.
        score: ``"error"``, or the Euclidean norm of a VAE's code.
        relative_map: See :class:`~anomalib_cxr.models.components.reconstruction.scoring.ErrorScore`.
        top_q: Share of the highest pixels that the score averages.
        kl_weight: Of ``vae`` alone; None takes 0.005.
        memory_slots: Of ``memory`` alone; None takes 25.
        noise: Of ``dae`` alone, a standard deviation for images in [0, 1]; None takes 0.2.
        backbone: Frozen encoder of the perceptual error.
        pre_trained: Whether that has timm's weights.
        weights_path: Local weights file for it.
        layer: Level of it.

    Raises:
        ValueError: If an argument, or a combination of some, makes no model; the message names it.
    """

    def __init__(
        self,
        image_size: int = 64,
        variant: Variant = "ae",
        network: Network = "conv",
        width: int = 16,
        hidden_size: int | None = 1024,
        latent_size: int | None = 16,
        error: ErrorName = "squared",
        score: Score = "error",
        relative_map: Relative = "none",
        top_q: float = 1.0,
        kl_weight: float | None = None,
        memory_slots: int | None = None,
        noise: float | None = None,
        backbone: str = "tf_efficientnet_lite0",
        pre_trained: bool = False,
        weights_path: str | Path | None = None,
        layer: int = 2,
    ) -> None:
        super().__init__()
        check_choice("variant", variant, Variant)
        check_choice("network", network, Network)
        check_choice("error", error, ERRORS)
        check_choice("score", score, Score)
        check_side(image_size)
        _check_combination(variant, network, score)
        sizes = {"hidden_size": hidden_size, "latent_size": latent_size}
        _check_sizes(network, {"width": width}, sizes)
        options = _options(variant, kl_weight=kl_weight, memory_slots=memory_slots, noise=noise)
        self.error = (
            PerceptualError(backbone, pre_trained, weights_path, layer) if error == "perceptual" else ERRORS[error]()
        )
        if network == "unet":
            self.network: nn.Module = UNet(width, HALVINGS, self.error.channels)
        else:
            encoder, decoder = _CODERS[network](width, self.error.channels)
            code = {"channels": encoder.channels, "hidden": hidden_size, "latent": latent_size}
            if variant != "spatial":
                code["cells"] = image_size // 2**HALVINGS
            bottleneck = _BOTTLENECKS.get(variant)
            made = bottleneck(**code, **options) if bottleneck else VectorBottleneck(**code)
            self.network = Reconstructor(encoder, made, decoder)
        corruption = _CORRUPTIONS.get(variant)
        self.corruption = corruption(**options) if corruption else NoCorruption()
        self.score = score
        self.scoring = ErrorScore(relative_map, top_q)

    def losses(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Terms of the loss of normal images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].
            generator: On the CPU, for all that is drawn.

        Returns:
            Scalars whose sum is trained, by name.
        """
        wanted = on_both_sides_of_zero(images)
        found = self.network(self.corruption(wanted, generator), generator)
        return {"reconstruction": self.error.loss(wanted, found.made), **found.penalties}

    def errors(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Error of each pixel (B, 1, H, W), and the code (B, …) if there is one, of images as of :meth:`losses`."""
        wanted = on_both_sides_of_zero(images)
        found = self.network(wanted)
        return self.error.map(wanted, found.made), found.code

    def moments(self, images: Tensor) -> Tensor:
        """What a perceptual error wants to know of images as of :meth:`losses`; see its ``moments``."""
        return cast("PerceptualError", self.error).moments(on_both_sides_of_zero(images))

    def fit(self, errors: Tensor) -> None:
        """Learn what errors are normal.

        Args:
            errors: (n, 1, H, W), :meth:`errors` of normal training images.
        """
        self.scoring.fit(errors)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``pred_score`` (B,), the mean of the highest part of the map or the norm of the code; ``anomaly_map``
            (B, 1, H, W), the error of each pixel, relative to normal ones if wanted. Higher is more abnormal.
        """
        errors, code = self.errors(images)
        score, anomaly_map = self.scoring(errors)
        if self.score == "code_norm" and code is not None:
            score = code.float().norm(dim=1)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)


_CODERS: Mapping[str, Callable[[int, int], tuple[Any, nn.Module]]] = {
    "conv": lambda width, channels: (ConvEncoder(width), ConvDecoder(width, channels)),
    "pix2pixhd": lambda width, channels: (GlobalEncoder(width), GlobalDecoder(width, channels)),
}
#: What a variant has of its own; others pass through a plain code and see images as they are.
_BOTTLENECKS: Mapping[str, Callable[..., nn.Module]] = {
    "vae": GaussianBottleneck,
    "memory": MemoryBottleneck,
    "spatial": SpatialBottleneck,
}
_CORRUPTIONS: Mapping[str, Callable[..., nn.Module]] = {"dae": CoarseNoise, "context": ErasedSquare}
#: Arguments of one variant alone, and what its part calls them.
_OWNERS = {"kl_weight": ("vae", "kl_weight"), "memory_slots": ("memory", "slots"), "noise": ("dae", "std")}


def _options(variant: str, **given: Any) -> dict[str, Any]:
    """Arguments of a variant's own part, as that calls them; others' are refused."""
    options = {}
    for name, value in given.items():
        owner, theirs = _OWNERS[name]
        if value is not None and owner != variant:
            msg = f"{name} belongs to variant={owner}, and this is variant={variant}: leave one of them out."
            raise ValueError(msg)
        if value is not None:
            options[theirs] = value
    return options


def _check_combination(variant: str, network: str, score: str) -> None:
    if score == "code_norm" and variant != "vae":
        msg = f"score=code_norm measures a code against its prior, and variant={variant} has none: take variant=vae."
        raise ValueError(msg)
    if network == "unet" and variant != "dae":
        msg = f"network=unet copies its input, and variant={variant} has no noise to take away: take variant=dae."
        raise ValueError(msg)


def _check_sizes(network: str, always: Mapping[str, int], of_code: Mapping[str, int | None]) -> None:
    for name, size in {**always, **of_code}.items():
        if network == "unet" and name in of_code:
            if size is not None:
                msg = f"{name} is of a code, and network=unet has none: leave it out."
                raise ValueError(msg)
        elif size is None or size < 1:
            msg = f"{name} must be 1 or more, not {size}."
            raise ValueError(msg)
