"""FeatureDistillation's teacher, student, loss and map: what is exported."""

from collections.abc import Sequence
from pathlib import Path

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models.components.normal_map import NormalMap
from anomalib_cxr.models.components.patch_encoder import PatchEncoder
from anomalib_cxr.models.feature_distillation.differences import place_wise, whole_map_cosine, whole_map_squares
from anomalib_cxr.models.feature_distillation.student import NarrowStudent

#: Levels that train the student and do not score, the finest ones.
_UNSCORED = 1


class FeatureDistillationModel(nn.Module):
    """A frozen teacher, a narrow student, and how far apart their features are.

    Args:
        teacher: timm model whose levels halve the image, as of any convolutional one.
        pre_trained: Whether the teacher has timm's weights.
        weights_path: Local weights file, see :class:`~anomalib_cxr.models.components.patch_encoder.PatchEncoder`.
        layers: Levels of the teacher that are learnt, two or more.
        pooled: Compare levels after a max-pooling by two, as VGG's stages end.
        width: Channels of the student's inner convolutions.
        mse_weight: Weight λ of the squared difference.
        normalise: Give the networks grey values as the teacher's weights want them; False leaves [0, 1], as the
            published code does at 128².
        relative: Score by the place-wise differences, each standardised by those of normal images at its place (ours),
            instead of by the differences of whole maps.

    Raises:
        ValueError: If an argument is out of range, or the teacher's levels do not halve the image.
    """

    def __init__(
        self,
        teacher: str = "vgg16",
        pre_trained: bool = False,
        weights_path: str | Path | None = None,
        layers: Sequence[int] = (1, 2, 3, 4),
        pooled: bool = True,
        width: int = 16,
        mse_weight: float = 0.01,
        normalise: bool = True,
        relative: bool = False,
    ) -> None:
        super().__init__()
        for wrong, message in (
            (
                len(set(layers)) <= _UNSCORED,
                f"layers must name two levels or more, for the finest only trains; got {tuple(layers)}.",
            ),
            (width < 1, f"width must be at least 1, not {width}."),
            (not mse_weight >= 0, f"mse_weight must be 0 or more, not {mse_weight}."),
        ):
            if wrong:
                raise ValueError(message)
        self.teacher = PatchEncoder(
            teacher,
            pre_trained=pre_trained,
            weights_path=weights_path,
            layers=layers,
            mean=None if normalise else 0.0,
            std=None if normalise else 1.0,
            input_range=None if normalise else (0.0, 1.0),
        )
        # What comes after the last level would only fill checkpoints: of VGG-16 that is seven eighths.
        self.teacher.model.prune_intermediate_layers(self.teacher.layers)
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)
        self.pooled = pooled
        self.mse_weight = mse_weight
        self.relative = relative
        self.normal_maps = nn.ModuleList(NormalMap(divide_by="deviation") for _ in self.teacher.layers[_UNSCORED:])
        self.student = self._student_of(self._probe(), width)

    @torch.no_grad()
    def _probe(self, side: int = 64) -> dict[int, Tensor]:
        """Levels of a random image by how much they are reduced."""
        self.teacher.eval()
        levels = self.targets(torch.rand(1, 1, side, side))
        reductions = [side // level.shape[-1] for level in levels]
        if len(set(reductions)) < len(reductions) or any(by < 2 or by & (by - 1) for by in reductions):
            msg = (
                f"layers must name levels that halve the image stage by stage, and this teacher's are reduced by "
                f"{reductions}: choose others, or another teacher."
            )
            raise ValueError(msg)
        return dict(zip(reductions, levels, strict=True))

    @staticmethod
    def _student_of(levels: dict[int, Tensor], width: int) -> NarrowStudent:
        rectified = all(bool((level >= 0).all()) for level in levels.values())
        return NarrowStudent({by: level.shape[1] for by, level in levels.items()}, width, rectified)

    def train(self, mode: bool = True) -> "FeatureDistillationModel":
        """Switch the student alone: the teacher's statistics stay."""
        super().train(mode)
        self.teacher.eval()
        return self

    def targets(self, grey: Tensor) -> list[Tensor]:
        """The teacher's levels.

        Args:
            grey: (B, 1, H, W) in [0, 1].

        Returns:
            Maps, the finest first.
        """
        levels = self.teacher.levels(grey)
        return [F.max_pool2d(level, 2) for level in levels] if self.pooled else levels

    def pairs(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Teacher's and student's map of each level, in float32.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            Pairs of (B, C, h, w), the finest first; gradients reach the student alone.
        """
        grey = images.mean(dim=1, keepdim=True)
        with torch.no_grad():
            targets = self.targets(grey)
        learnt = self.student((grey - self.teacher.mean) / self.teacher.std)
        return [(target.float(), student.float()) for target, student in zip(targets, learnt, strict=True)]

    def losses(self, images: Tensor) -> dict[str, Tensor]:
        """Salehi et al.'s loss, by its two terms.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``cosine``, and ``squared`` with its weight, both summed over levels: means over the batch.
        """
        pairs = self.pairs(images)
        return {
            "cosine": torch.stack([whole_map_cosine(*pair) for pair in pairs]).sum(dim=0).mean(),
            "squared": self.mse_weight * torch.stack([whole_map_squares(*pair) for pair in pairs]).sum(dim=0).mean(),
        }

    def differences(self, images: Tensor) -> list[Tensor]:
        """Place-wise differences of the levels that score.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            Maps (B, 1, h, w), the finest first.
        """
        return [place_wise(*pair) for pair in self.pairs(images)[_UNSCORED:]]

    def fit(self, differences: Sequence[Tensor]) -> None:
        """Learn how large the differences of normal images are at each place; for ``relative``.

        Args:
            differences: :meth:`differences` of all normal training images.
        """
        for normal_map, level in zip(self.normal_maps, differences, strict=True):
            normal_map.fit(level)  # type: ignore[operator]

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``anomaly_map`` (B, 1, H, W), the mean over the levels of their place-wise differences, enlarged, and with
            ``relative`` each in standard deviations of normal images; ``pred_score`` (B,), both terms of the loss, or
            with ``relative`` the mean of those differences. The finest level counts for neither. Higher is more
            abnormal.
        """
        pairs = self.pairs(images)[_UNSCORED:]
        levels = [place_wise(*pair) for pair in pairs]
        if self.relative:
            levels = [normal_map(level) for normal_map, level in zip(self.normal_maps, levels, strict=True)]
            score = torch.stack([level.mean(dim=(1, 2, 3)) for level in levels]).mean(dim=0)
        else:
            misses = [whole_map_cosine(*pair) + self.mse_weight * whole_map_squares(*pair) for pair in pairs]
            score = torch.stack(misses).sum(dim=0)
        size = images.shape[-2:]
        maps = [F.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in levels]
        return InferenceBatch(pred_score=score, anomaly_map=torch.cat(maps, dim=1).mean(dim=1, keepdim=True))
