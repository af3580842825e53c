"""AnatPaste's network, density and heat map: what is exported."""

import itertools
from statistics import fmean
from typing import Any, Literal, cast

import timm
import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F

from anomalib_cxr.checks import check_choice
from anomalib_cxr.models.anat_paste.local_density import LocalDensity
from anomalib_cxr.models.components.kernel_density import GaussianKernelDensity
from anomalib_cxr.models.components.normal_map import NormalMap
from anomalib_cxr.models.components.residual_branches import open_residual_branches

Density = Literal["kernel", "local"]


class AnatPasteModel(nn.Module):
    """Backbone, projection head and density.

    Grey input: three channels are averaged to one inside the model, so that the exported graph takes what Anomalib's
    datasets yield. Intensities in [0, 1] are mapped to [−1, 1] (mean 0.5, standard deviation 0.5, as the published
    code does), or by the backbone's own statistics if it is pretrained.

    Args:
        backbone: Any timm model whose features end in plain average pooling.
        pre_trained: Start from timm's weights for the backbone.
        head_layers: Hidden layers of 512 units before the one of 128; the published code's ``n×512 + 128``.
        num_classes: Normal, and one for each kind of pasting.
        bandwidth: Of the kernel density.
        fine_map: Average the heat map over shifts by half a cell, in four passes instead of one (ours): with 4 × 4
            cells the map says more precisely where. Not with ``density="local"``, whose map is no Grad-CAM.
        density: ``"kernel"``, the paper's, of the pooled embedding; or ``"local"`` (ours), :class:`LocalDensity` on the
            last feature map but one, which gives the heat map, too.

    Raises:
        ValueError: If the backbone is unknown to timm or does not end in plain average pooling, or an argument is out
            of range.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        pre_trained: bool = False,
        head_layers: int = 1,
        num_classes: int = 2,
        bandwidth: float = 1.0,
        fine_map: bool = False,
        density: Density = "kernel",
    ) -> None:
        super().__init__()
        check_choice("density", density, Density)
        if fine_map and density == "local":
            msg = "fine_map averages Grad-CAMs, and density='local' draws none: leave fine_map out."
            raise ValueError(msg)
        if not timm.is_model(backbone):
            msg = f"timm knows no model {backbone!r}: timm.list_models() lists them."
            raise ValueError(msg)
        if head_layers < 0:
            msg = f"head_layers must be 0 or more, not {head_layers}."
            raise ValueError(msg)
        self.backbone = cast("Any", timm.create_model(backbone, pretrained=pre_trained, in_chans=1, num_classes=0))
        _refuse_other_pooling(self.backbone, backbone)
        if not pre_trained:
            open_residual_branches(self.backbone)
        self.head = projection_head(self.backbone.num_features, head_layers)
        self.classifier = nn.Linear(128, num_classes)
        self.density: GaussianKernelDensity | LocalDensity
        self.density = GaussianKernelDensity(bandwidth) if density == "kernel" else LocalDensity()
        self.normal_map = NormalMap()
        self.fine_map = fine_map
        statistics: dict[str, Any] = self.backbone.pretrained_cfg if pre_trained else {"mean": (0.5,), "std": (0.5,)}
        self.mean = fmean(statistics["mean"])
        self.std = fmean(statistics["std"])

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Final feature map, the one that is pooled.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            (B, C, h, w).
        """
        return self.backbone.forward_features(self._normalised(images))

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(dim=1, keepdim=True) if images.shape[1] > 1 else images
        return (grey - self.mean) / self.std

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits, for training.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            (B, num_classes), the normal class first.
        """
        return self.classifier(self.head(self.features(images).mean(dim=(2, 3))))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled backbone embeddings, (B, C), not normalised."""
        return self.features(images).mean(dim=(2, 3))

    def references(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What :meth:`fit` wants to know of images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            With a kernel density, embeddings and heat maps, see :meth:`embed_with_cams`; with a local one,
            :meth:`cells`. The first dimension is the image's.
        """
        return (self.cells(images),) if isinstance(self.density, LocalDensity) else self.embed_with_cams(images)

    def fit(self, *references: torch.Tensor) -> None:
        """Take un-augmented normal images as references of density and heat map.

        Args:
            references: What :meth:`references` gives for all of them in evaluation mode.
        """
        self.density.fit(references[0])
        if isinstance(self.density, GaussianKernelDensity):
            self.normal_map.fit(references[1])

    @torch.no_grad()
    def extend(self, *references: torch.Tensor) -> None:
        """Add other normal images to the references of the density; the mean heat map stays.

        Args:
            references: What :meth:`references` gives for them in evaluation mode.
        """
        self.density.extend(references[0])

    def cells(self, images: torch.Tensor) -> torch.Tensor:
        """Last feature map but one, cell by cell.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            (B, rows, cols, D).
        """
        level = self.backbone.forward_intermediates(
            self._normalised(images), indices=[-2], stop_early=True, intermediates_only=True
        )[0]
        return level.permute(0, 2, 3, 1)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images and draw their maps.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``pred_score`` (B,), the negative log density, or with a local one the mean distance; ``anomaly_map``
            (B, 1, H, W), the Grad-CAM, or the distances, less those of normal images.
        """
        height, width = images.shape[-2:]
        if isinstance(self.density, LocalDensity):
            score, distances = self.density(self.cells(images))
            return InferenceBatch(pred_score=score, anomaly_map=enlarge(distances, height, width))
        pooled, cams = self.embed_with_cams(images)
        large = enlarge(self.normal_map(cams), height, width)
        shifts = self._shifts((height, width), cams.shape[-2:])
        back = [shift_back(large[:, i : i + 1], *shift) for i, shift in enumerate(shifts)]
        return InferenceBatch(pred_score=self.density(pooled), anomaly_map=torch.cat(back, dim=1).mean(1, keepdim=True))

    def embed_with_cams(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed images and draw their coarse heat maps.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            Pooled embeddings (B, C), and Grad-CAMs (B, S, h, w): of the image, and with ``fine_map`` of the image moved
            by half a cell down, right, and both.
        """
        features = self.features(images)
        pooled = features.mean(dim=(2, 3))
        cams = [self.grad_cam(features, pooled)]
        for down, right in self._shifts(images.shape[-2:], features.shape[-2:])[1:]:
            moved = self.features(shift(images, down, right))
            cams.append(self.grad_cam(moved, moved.mean(dim=(2, 3))))
        return pooled, torch.cat(cams, dim=1)

    def _shifts(self, size: tuple[int, ...], cells: tuple[int, ...]) -> list[tuple[int, int]]:
        """Rows and columns by which the image is moved for each Grad-CAM."""
        if not self.fine_map:
            return [(0, 0)]
        down, right = (round(length / count / 2) for length, count in zip(size, cells, strict=True))
        return [(0, 0), (down, 0), (0, right), (down, right)]

    def grad_cam(self, features: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Grad-CAM towards "pasted" minus "normal", on the feature map that is pooled.

        Only average pooling stands between map and head, so the channel weights ``mean_xy ∂y/∂F`` are the head's
        gradient with respect to the pooled vector, divided by h·w; and that is a chain of matrix products, which
        exports. Without Grad-CAM's final ReLU: it would tie all pixels that speak for "normal", and the summed map
        would no longer be the head's linearised score. (Selvaraju et al. 2017; the ReLU is ours to leave out.)

        Args:
            features: (B, C, h, w).
            pooled: (B, C), their mean over positions.

        Returns:
            (B, 1, h, w).
        """
        weights = self.head_gradient(pooled) / (features.shape[2] * features.shape[3])
        return (weights[:, :, None, None] * features).sum(dim=1, keepdim=True)

    def head_gradient(self, pooled: torch.Tensor) -> torch.Tensor:
        """Gradient of the pasted logits' mean minus the normal logit, with respect to the pooled vector.

        Evaluation mode is meant: batch normalisation is then an affine map.

        Args:
            pooled: (B, C).

        Returns:
            (B, C).
        """
        masks = []
        hidden = pooled
        for linear, norm, _ in self._head_blocks():
            hidden = norm(linear(hidden))
            masks.append(hidden > 0)
            hidden = F.relu(hidden)
        contrast = self.classifier.weight[1:].mean(dim=0) - self.classifier.weight[0]
        gradient = contrast.expand(pooled.shape[0], -1)
        for (linear, norm, _), mask in zip(reversed(self._head_blocks()), reversed(masks), strict=True):
            slope = norm.weight * torch.rsqrt(torch.as_tensor(norm.running_var) + norm.eps)
            gradient = (gradient * mask.to(gradient.dtype) * slope) @ linear.weight
        return gradient

    def _head_blocks(self) -> list[tuple[nn.Linear, nn.BatchNorm1d, nn.ReLU]]:
        layers = list(self.head)
        return [tuple(layers[i : i + 3]) for i in range(0, len(layers), 3)]  # type: ignore[misc]


def shift(images: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Move images (B, C, H, W) down and right; the first row and column fill what is left free."""
    height, width = images.shape[-2:]
    return F.pad(images, (right, 0, down, 0), mode="replicate")[..., :height, :width]


def shift_back(maps: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Undo :func:`shift` on maps (B, C, H, W); the last row and column fill what had left the image."""
    if not (down or right):
        return maps
    return F.pad(maps, (0, right, 0, down), mode="replicate")[..., down:, right:]


def enlarge(cam: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bring a coarse map to the size of the image, falling to its minimum beyond the rim.

    Plain bilinear enlargement repeats the outer cells up to the image's edge, so that with few cells the brightest
    pixels gather outside of the body. (Ours; chosen on PhantomCXR's validation films.)

    Args:
        cam: (B, S, h, w).
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        (B, S, height, width).
    """
    low = cam.amin(dim=(2, 3), keepdim=True)
    framed = F.pad(cam - low, (1, 1, 1, 1))
    rim_y, rim_x = round(height / cam.shape[2]), round(width / cam.shape[3])
    large = F.interpolate(framed, size=(height + 2 * rim_y, width + 2 * rim_x), mode="bilinear", align_corners=False)
    return large[:, :, rim_y : rim_y + height, rim_x : rim_x + width] + low


def projection_head(in_features: int, head_layers: int) -> nn.Sequential:
    """MLP of ``head_layers`` × 512 units and one layer of 128, each with batch normalisation and ReLU."""
    widths = [in_features, *[512] * head_layers, 128]
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU()]
    return nn.Sequential(*layers)


def _refuse_other_pooling(backbone: Any, name: str) -> None:
    """Probe that embedding = mean of the final feature map, which the Grad-CAM rests on."""
    training = backbone.training
    backbone.eval()
    probe = torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64)
    try:
        with torch.no_grad():
            features = backbone.forward_features(probe)
            pooled = backbone.forward_head(features, pre_logits=True)
        plain = features.ndim == 4 and features.shape[:2] == pooled.shape
        plain = plain and torch.allclose(pooled, features.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
    except (AssertionError, RuntimeError):  # transformers refuse any size but their own
        plain = False
    backbone.train(training)
    if not plain:
        msg = (
            f"Backbone {name} does not end in plain average pooling of a feature map, which AnatPaste's heat map "
            "needs: take for example resnet18, resnet50 or efficientnet_b0."
        )
        raise ValueError(msg)
