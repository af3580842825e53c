"""MultiResPatchSSL's network, banks and maps: what is exported.

Kim, Moon and Lee, "Unsupervised anomaly detection for posteroanterior chest X-rays using multiresolution patch-based
self-supervised learning", Sci. Rep. 2023, doi 10.1038/s41598-023-30589-w.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_cxr.checks import check_choice
from anomalib_cxr.models.components.full_precision import full_precision
from anomalib_cxr.models.components.patch_encoder import PatchEncoder
from anomalib_cxr.models.components.patch_grid import PatchGrid
from anomalib_cxr.models.components.patch_search.local_search import Distance, top_q_mean
from anomalib_cxr.models.components.patch_search.reference_bank import (
    BankDtype,
    ReferenceBank,
    Selection,
    expected_bytes,
)
from anomalib_cxr.models.multires_patch_ssl.projection_head import projection_head

logger = logging.getLogger(__name__)

Features = Literal["crops", "map"]
Score = Literal["max", "top_q"]
PatchDistance = int | Literal["all"] | None

#: Best of the paper for its four sizes, smallest first.
PAPER_WEIGHTS = (0.1, 1.2, 1.2, 1.0)


class NearestReferences(NamedTuple):
    """What the patches of one size matched.

    Attributes:
        patch_size: Side of the patches in pixels.
        distance: Distance of each patch to its match, shape ``(B, rows, cols)``.
        image: Training image of the match, shape ``(B, rows, cols)``.
        row: Grid row of the match, shape ``(B, rows, cols)``.
        col: Grid column of the match, shape ``(B, rows, cols)``.
    """

    patch_size: int
    distance: Tensor
    image: Tensor
    row: Tensor
    col: Tensor


class MultiResPatchSSLModel(nn.Module):
    """Patch encoders, reference banks and the fused anomaly map.

    Life: train the encoders through :meth:`embed` (or take pretrained ones as they are), collect :meth:`features` of
    the un-augmented normal training images in evaluation mode, hand them to :meth:`fit`, then call the model.

    The fused map is ``Σ wᵢ zᵢ / Σ wᵢ`` with ``zᵢ = (Aᵢ - meanᵢ) / stdᵢ``. Mean and standard deviation of each size are
    those of training patches searched without their own image, fixed by :meth:`fit`: 0 is a typical normal patch. A
    normalisation for each image would give every image the same highest pixel. (The paper says only "normalise"; the
    standardising is ours, and gives the weights one meaning for all distances. It keeps the ranks of every one-size
    map.)

    Args:
        patch_sizes: Patch sides in pixels of the model's input, in any order; one encoder and one bank each. A size
            may come again where ``backbone`` lists one for each (ours): several encoders, whose maps are averaged.
        strides: Stride of each size in pixels, or one for all. Defaults to ``None``: the size itself.
        backbone: timm model, or one for each size. The paper: ResNet-50.
        in_chans: Channels of the encoders' input, see :class:`PatchEncoder`.
        pre_trained: Whether encoders start from timm's weights.
        weights_path: Local weights file for all encoders, or one for each size, see :class:`PatchEncoder`.
        mean: Mean that the weights were trained with, or one for each size, see :class:`PatchEncoder`.
        std: Its standard deviation, or one for each size.
        input_range: What black and white are for the weights, or such a pair for each size.
        shared_encoder: One encoder for all sizes (ours); with frozen pretrained weights it changes nothing but the
            memory and, with ``features="map"``, the time. Defaults to ``False``, the paper's one for each size.
        encoder_size: Side to which patches are resized before the encoder, or one for each size. Defaults to
            ``None``: as cut.
        features: ``"crops"``, the paper's: each patch is cut out and encoded. ``"map"``, ours: a cell's feature is the
            average of a whole-image feature map over the patch; one pass an image.
        layers: Levels of the feature map for ``"map"``, see :class:`PatchEncoder`. Defaults to the last two.
        projection_dim: Length of the projections for training.
        patch_distance: Patch distance, or one for each size; ``"all"`` (or ``None``) searches the whole grid.
        distance: Distance of features, see
            :class:`~anomalib_cxr.models.components.patch_search.local_search.LocalSearch`.
        weights: Weight of each size's map, not negative, in the order of ``patch_sizes``. Defaults to ``None``: the
            paper's for four sizes, otherwise equal.
        score: Image score: ``"max"``, the highest pixel of the fused map (paper), or ``"top_q"``, the mean of its
            highest pixels (ours).
        top_q: Part of the pixels averaged by ``"top_q"``, in ``(0, 1]``.
        bank_dtype: See :class:`ReferenceBank`.
        feature_dim: See :class:`ReferenceBank`.
        max_references: See :class:`ReferenceBank`.
        selection: See :class:`ReferenceBank`.
        statistics_images: At most so many training images, drawn by ``seed``, are searched for mean and standard
            deviation; the search of all against all grows with the square of their number. Defaults to ``500``.
        encoder_batch: Patches encoded at once outside of training (and of export). Defaults to ``256``.
        seed: Seed of the choices of :meth:`fit`. Encoders are initialised from torch's global random state.
        image_size: Height and width of the images, to which ``"map"`` brings transformers' codes of places; None
            leaves them as timm has them. With ``"crops"`` it is the patches' size that counts.

    Raises:
        ValueError: If an argument is out of range, or a list does not have one entry for each patch size.

    Examples:
        >>> model = MultiResPatchSSLModel(patch_sizes=(16, 32), backbone="resnet18", encoder_size=32).eval()
        >>> images = torch.rand(6, 3, 64, 64)
        >>> with torch.no_grad():
        ...     model.fit(model.features(images))
        ...     batch = model(images[:2])
        >>> batch.anomaly_map.shape
        torch.Size([2, 1, 64, 64])
    """

    score_mean: Tensor
    score_std: Tensor

    def __init__(
        self,
        patch_sizes: Sequence[int] = (16, 32, 64, 128),
        strides: int | Sequence[int | None] | None = None,
        backbone: str | Sequence[str] = "resnet50",
        in_chans: int = 1,
        pre_trained: bool = False,
        weights_path: str | Path | Sequence[str | Path | None] | None = None,
        shared_encoder: bool = False,
        encoder_size: int | Sequence[int | None] | None = None,
        features: Features = "crops",
        layers: Sequence[int] = (-2, -1),
        projection_dim: int = 128,
        patch_distance: PatchDistance | Sequence[PatchDistance] = 1,
        distance: Distance = "mahalanobis",
        weights: Sequence[float] | None = None,
        score: Score = "max",
        top_q: float = 0.25,
        bank_dtype: BankDtype = "float32",
        feature_dim: int | None = None,
        max_references: int | None = None,
        selection: Selection = "random",
        statistics_images: int = 500,
        encoder_batch: int = 256,
        seed: int = 0,
        mean: float | Sequence[float | None] | None = None,
        std: float | Sequence[float | None] | None = None,
        input_range: Sequence[float] | Sequence[Sequence[float] | None] | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        n = len(patch_sizes)
        backbones = _one_each("backbone", backbone, n)
        files = _one_each("weights_path", weights_path, n)
        if n == 0 or (len(set(patch_sizes)) < n and isinstance(backbone, str)):
            msg = (
                "`patch_sizes` needs one or more different sizes, unless `backbone` lists an encoder for each; "
                f"got {tuple(patch_sizes)}."
            )
            raise ValueError(msg)
        check_choice("features", features, Features)
        check_choice("score", score, Score)
        if not 0 < top_q <= 1 or statistics_images < 2 or encoder_batch < 1:
            msg = (
                "`top_q` must lie in (0, 1], `statistics_images` be at least 2 and `encoder_batch` at least 1; "
                f"got {top_q}, {statistics_images} and {encoder_batch}."
            )
            raise ValueError(msg)
        banks = [
            ReferenceBank(reach, distance, bank_dtype, feature_dim, max_references, selection, seed)
            for reach in _one_each("patch_distance", patch_distance, n)
        ]
        self.patch_sizes = tuple(patch_sizes)
        self.strides = _one_each("strides", strides, n)
        encoder_sizes = _one_each("encoder_size", encoder_size, n)
        if shared_encoder and len({*zip(backbones, files, encoder_sizes, strict=True)}) > 1:
            msg = "A shared encoder needs one `backbone`, `weights_path` and `encoder_size` for all patch sizes."
            raise ValueError(msg)
        if weights is None:
            weights = PAPER_WEIGHTS if n == len(PAPER_WEIGHTS) else (1.0,) * n
        if len(weights) != n or min(weights) < 0 or sum(weights) <= 0:
            msg = f"`weights` needs {n} numbers (one a patch size), none negative and not all 0; got {tuple(weights)}."
            raise ValueError(msg)
        self.weights = tuple(float(weight) for weight in weights)
        self.feature_kind = features
        self.score = score
        self.top_q = top_q
        self.statistics_images = statistics_images
        self.encoder_batch = encoder_batch
        self.seed = seed

        means, deviations = _one_each("mean", mean, n), _one_each("std", std, n)
        one_range = input_range is not None and not any(isinstance(part, Sequence) for part in input_range)
        ranges = _one_each("input_range", [input_range] * n if one_range else input_range, n)
        self.encoders = nn.ModuleList(
            PatchEncoder(
                backbones[i],
                in_chans,
                pre_trained,
                files[i],
                encoder_sizes[i],
                layers,
                means[i],
                deviations[i],
                ranges[i],
                image_size if features == "map" else (encoder_sizes[i] or patch_sizes[i],) * 2,
            )
            for i in range(1 if shared_encoder else n)
        )
        #: What messages call the map of each size.
        self.map_names = _told_apart(
            [f"{side} px" for side in patch_sizes],
            [f"{side} px, {name}" for side, name in zip(patch_sizes, backbones, strict=True)],
            [f"{side} px, {name} ({i})" for i, (side, name) in enumerate(zip(patch_sizes, backbones, strict=True), 1)],
        )
        self.heads = nn.ModuleList(projection_head(self.encoder(i).num_features, out=projection_dim) for i in range(n))
        self.banks = nn.ModuleList(banks)
        self.register_buffer("score_mean", torch.zeros(n))
        self.register_buffer("score_std", torch.ones(n))

    # -------------------------------------------------------------------- features

    def encoder(self, size: int) -> PatchEncoder:
        """Encoder of the ``size``-th patch size."""
        encoder = self.encoders[size if len(self.encoders) > 1 else 0]
        if not isinstance(encoder, PatchEncoder):
            raise TypeError
        return encoder

    def grid(self, size: int, image_size: tuple[int, int]) -> PatchGrid:
        """Grid of the ``size``-th patch size over an image of ``image_size``."""
        return PatchGrid(image_size, self.patch_sizes[size], self.strides[size])

    def embed(self, patches: Tensor, size: int) -> Tensor:
        """Project patches for the contrastive loss, with gradients.

        Args:
            patches: Grey patches in [0, 1], shape ``(n, 1, p, p)``.
            size: Which of ``patch_sizes``, by position.

        Returns:
            Projections of shape ``(n, projection_dim)``.
        """
        return self.heads[size](self.encoder(size)(patches))

    def features(self, image: Tensor) -> list[Tensor]:
        """Features of all patches, for the banks and for queries.

        Args:
            image: Images in [0, 1], shape ``(B, 3, H, W)`` (averaged to grey) or ``(B, 1, H, W)``.

        Returns:
            For each patch size, features of shape ``(B, rows, cols, D)``.
        """
        image = grey(image)
        height, width = image.shape[-2:]
        grids = [self.grid(i, (height, width)) for i in range(len(self.patch_sizes))]
        if self.feature_kind == "map":
            return [self.encoder(i).cells(image, grid) for i, grid in enumerate(grids)]
        return [self._encode(grid.cut(image), i) for i, grid in enumerate(grids)]

    def _encode(self, patches: Tensor, size: int) -> Tensor:
        """Patches (B, rows, cols, 1, p, p) to features (B, rows, cols, D), some at a time."""
        rows, cols = patches.shape[1:3]
        flat = patches.flatten(0, 2)
        parts = (flat,) if torch.compiler.is_exporting() else flat.split(self.encoder_batch)
        return torch.cat([self.encoder(size)(part) for part in parts]).unflatten(0, (-1, rows, cols))

    def expected_bank_bytes(self, n_images: int, image_size: tuple[int, int]) -> list[int]:
        """Memory that each size's bank will take.

        Args:
            n_images: Normal training images.
            image_size: Height and width of the model's input.

        Returns:
            Bytes, one entry for each patch size.
        """
        sizes = []
        for i, bank in enumerate(self.reference_banks()):
            grid, encoder = self.grid(i, image_size), self.encoder(i)
            dim = encoder.map_features if self.feature_kind == "map" else encoder.num_features
            dtype: BankDtype = str(bank.search.references.dtype).removeprefix("torch.")  # type: ignore[assignment]
            kept = min(n_images, bank.max_references or n_images)
            sizes.append(expected_bytes(kept, (grid.rows, grid.cols), bank.feature_dim or dim, dtype))
        return sizes

    # ------------------------------------------------------------------------- fit

    @torch.no_grad()
    def fit(
        self, features: Sequence[Tensor], image_index: Tensor | None = None, as_they_are: int | None = None
    ) -> None:
        """Build the banks and fix the statistics of the maps.

        Args:
            features: :meth:`features` of all normal training images, for each size ``(N, rows, cols, D)``.
            image_index: Number of each image, shape ``(N,)``. Defaults to ``0 … N-1``.
            as_they_are: How many of them, the first ones, show images as they are; the others are altered ones, and
                count for the banks and their whitening alone. Defaults to ``None``: all.

        Raises:
            ValueError: If there are fewer than two images, or features do not suit the banks.
        """
        if len(features) != len(self.patch_sizes):
            msg = f"Features of {len(features)} patch sizes arrived, the model has {len(self.patch_sizes)}."
            raise ValueError(msg)
        n = len(features[0]) if as_they_are is None else as_they_are
        if n < 2:
            msg = (
                f"The reference bank needs at least two normal training images, got {n}: scores are normalised by "
                "comparing training images with each other."
            )
            raise ValueError(msg)
        index = torch.arange(len(features[0])) if image_index is None else image_index
        index = index.to(features[0].device)
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[: self.statistics_images]
        chosen = chosen.sort().values.to(index.device)
        for i, bank in enumerate(self.reference_banks()):
            bank.fit(features[i], index)
            scores = torch.cat([bank(features[i][part], index[part])[0].flatten() for part in chosen.split(16)])
            counted = scores[scores.isfinite()].cpu().double()  # Apple's devices have no float64
            if len(counted) == 0:
                msg = f"No training patch of size {self.patch_sizes[i]} has a reference from another image."
                raise ValueError(msg)
            if len(counted) < len(scores):
                logger.warning(
                    "Size %d: %d of %d training patches have no reference of another image and are left out of the "
                    "statistics.",
                    self.patch_sizes[i],
                    len(scores) - len(counted),
                    len(scores),
                )
            mean, std = counted.mean(), counted.std(correction=0)
            self.score_mean[i] = mean
            # Identical training images: nothing to divide by, and the map is 0 where they are matched.
            self.score_std[i] = torch.where(std > 1e-6 * mean, std, 1.0)

    @torch.no_grad()
    def extend(self, features: Sequence[Tensor]) -> None:
        """Add other normal images to the banks; the statistics of the maps stay those of the training images.

        Args:
            features: :meth:`features` of the images, for each size ``(n, rows, cols, D)``.

        Raises:
            ValueError: If the banks are empty, or the features do not fit them.
        """
        for bank, part in zip(self.reference_banks(), features, strict=True):
            bank.extend(part)

    def reference_banks(self) -> list[ReferenceBank]:
        """Banks in the order of ``patch_sizes``."""
        return [bank for bank in self.banks if isinstance(bank, ReferenceBank)]

    # ----------------------------------------------------------------------- score

    def forward(self, image: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            image: Images in [0, 1], shape ``(B, 3, H, W)`` or ``(B, 1, H, W)``, of the size the banks were built with.

        Returns:
            ``pred_score`` of shape ``(B,)`` and ``anomaly_map`` of shape ``(B, 1, H, W)``; higher is more abnormal.
        """
        anomaly_map = self.fuse(self.maps(image))
        return InferenceBatch(pred_score=self.image_score(anomaly_map), anomaly_map=anomaly_map)

    def fuse(self, maps: Tensor, weights: Sequence[float] | None = None) -> Tensor:
        """Standardise the maps of all sizes and average them.

        Args:
            maps: One map for each patch size, shape ``(B, S, H, W)``.
            weights: Weight of each size instead of the model's own.

        Returns:
            Fused map of shape ``(B, 1, H, W)``.
        """
        factors = maps.new_tensor(self.weights if weights is None else weights)
        mean, std = self.score_mean.to(maps), self.score_std.to(maps)
        standard = (maps - mean[:, None, None]) / std[:, None, None]
        return (standard * (factors / factors.sum())[:, None, None]).sum(1, keepdim=True)

    def image_score(self, anomaly_map: Tensor) -> Tensor:
        """Image score of maps ``(B, 1, H, W)``: their highest pixel, or the mean of the highest; shape ``(B,)``."""
        flat = anomaly_map.flatten(1)
        return flat.amax(1) if self.score == "max" else top_q_mean(flat, self.top_q)

    def maps(self, image: Tensor) -> Tensor:
        """Distance maps before fusion, for explanation and ablation.

        Args:
            image: As for :meth:`forward`.

        Returns:
            One map for each patch size, shape ``(B, S, H, W)``.
        """
        height, width = image.shape[-2:]
        return self.maps_of(self.features(image), (height, width))

    def maps_of(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Distance maps of features that are there already.

        Args:
            features: What :meth:`features` gave, for each size ``(B, rows, cols, D)``.
            image_size: Height and width of the images.

        Returns:
            One map for each patch size, shape ``(B, S, H, W)``.
        """
        with full_precision(features[0].device):
            found = [bank(part)[0] for bank, part in zip(self.reference_banks(), features, strict=True)]
            return torch.cat([self.grid(i, image_size).spread(distances) for i, distances in enumerate(found)], dim=1)

    @torch.no_grad()
    def nearest_references(self, image: Tensor) -> list[NearestReferences]:
        """Explain: which training patch each patch was compared with.

        Args:
            image: As for :meth:`forward`.

        Returns:
            One entry for each patch size.

        Raises:
            RuntimeError: If the model is in training mode.
        """
        if self.training:
            msg = (
                "MultiResPatchSSLModel is in training mode, in which nearest_references would compare other features "
                "than those of the bank: call eval() first."
            )
            raise RuntimeError(msg)
        found = []
        for size, features, bank in zip(self.patch_sizes, self.features(image), self.reference_banks(), strict=True):
            distance, index = bank(features)
            found.append(NearestReferences(size, distance, *index.unbind(-1)))
        return found


def grey(image: Tensor) -> Tensor:
    """Average the channels of images ``(B, C, H, W)`` to ``(B, 1, H, W)``."""
    return image if image.shape[1] == 1 else image.mean(1, keepdim=True)


def _told_apart(*names: list[str]) -> tuple[str, ...]:
    """The first of several lists of names in which all differ."""
    return next(tuple(each) for each in names if len(set(each)) == len(each))


def _one_each(name: str, value: object, n: int) -> list:
    """Repeat one value for all sizes, or check that a list has one for each."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * n
    if len(value) != n:
        msg = f"`{name}` needs one entry for each of the {n} patch sizes, got {len(value)}."
        raise ValueError(msg)
    return list(value)
