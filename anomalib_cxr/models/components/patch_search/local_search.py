"""Exact nearest-reference search limited to a patch distance.

Kim, Moon and Lee (Sci. Rep. 2023): the score of a patch is the distance to the nearest reference patch of the same
size whose grid position lies within a *patch distance* d of its own. Anatomy moves a little between patients, but a
patch must not be excused by an unrelated region.

How it is searched (ours). The nearest reference y of a query x maximises ``x·y - |y|²/2``, a matrix product. The
queries around each reference cell form one matrix, so each part of the bank is read once and every product has a good
shape; only the best reference of each row survives, in chunks of bounded size. The product loses digits where the
nearest reference is very near, so the winner's distance is computed again directly, and where rounding may have
picked the wrong winner the neighbourhood is searched again by direct differences. That second search costs more than
ten times the first where every query needs it, as when all references nearly coincide; on features of real
radiographs it is needed for 0 to 20 % of the cells, most in flat regions of shallow layers. An exported graph does
without it: a winner may then be a reference that is farther, by no more than :meth:`LocalSearch.rounding` in squared
distance: up to a quarter of a distance that is a thousandth of the query's from the references' mean.
"""

from typing import Any, Literal

import torch
from anomalib.models.components.base import DynamicBufferMixin
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.checks import check_choice
from anomalib_cxr.devices import has_float64, widen
from anomalib_cxr.models.components.full_precision import from_parts, full_precision, in_parts
from anomalib_cxr.models.components.patch_search.whitening import whitening_matrix

Distance = Literal["euclidean", "manhattan", "cosine", "mahalanobis", "whitened_cosine"]

_WHITENED = ("mahalanobis", "whitened_cosine")
_ANGULAR = ("cosine", "whitened_cosine")

# Largest relative error of a squared distance that a wrong winner may cause before it is searched again.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5}
# Under export the batch size is unknown, and every chunk becomes nodes of the graph: chunks are larger, and an image.
_EXPORT_ELEMENTS = 2**24


class LocalSearch(DynamicBufferMixin, nn.Module):
    """Distance of each query cell to its nearest reference within a Chebyshev patch distance.

    Args:
        patch_distance: How many cells a reference may lie away, by row or column: ``0`` the same cell, ``1`` the
            3×3 cells around it. ``None`` or ``"all"`` searches the whole grid. Defaults to ``1``.
        distance: ``"euclidean"``; ``"manhattan"``; ``"cosine"``, which is ``1 - cos`` (a zero vector, which
            has no direction, is 0 from another and 0.5 from all else); ``"mahalanobis"``, with the covariance of
            all references shrunk after Ledoit and Wolf, which makes it invertible; ``"whitened_cosine"`` (ours), the
            cosine after that whitening: directions in which all references vary do not drown the others, and the
            length, in which exposure shows, does not count. Defaults to ``"euclidean"``.
        dtype: Type in which references are stored. Half precision is widened chunk by chunk and computed in float32;
            references that it cannot hold are refused. Defaults to ``torch.float32``.
        max_elements: Bound on the scores (query, reference) held at once, in elements. Peak memory of a search is a
            few times this, plus a small multiple of the queries; never queries × references. Defaults to ``2**21``
            (8 MB at float32). While exporting, 2**24 for each image of the batch; Manhattan, which has no matrix
            product and materialises differences there, counts D elements for each score.

    Attributes:
        references: References as given, or whitened, shape ``(rows, cols, M, D)``; for the two cosines each divided by
            the power of two that brings its largest entry to 1 … 2, so that no length is too small or large for a type.
        image_index: Training image of each reference, shape ``(rows, cols, M)``.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> search = LocalSearch(patch_distance=0)
        >>> bank = torch.rand(10, 4, 4, 8)
        >>> search.fit(bank)
        >>> distance, index = search(bank[3:4])
        >>> distance.max().item(), index[0, 1, 2].tolist()
        (0.0, [3, 1, 2])
    """

    references: Tensor
    image_index: Tensor
    half_norms: Tensor
    centre_parts: Tensor
    whitening_parts: Tensor

    def __init__(
        self,
        patch_distance: int | Literal["all"] | None = 1,
        distance: Distance = "euclidean",
        dtype: torch.dtype = torch.float32,
        max_elements: int = 2**21,
    ) -> None:
        super().__init__()
        patch_distance = None if patch_distance == "all" else patch_distance
        if patch_distance is not None and (not isinstance(patch_distance, int) or patch_distance < 0):
            msg = f'`patch_distance` must be 0 or more, or "all" for the whole grid; got {patch_distance!r}.'
            raise ValueError(msg)
        check_choice("distance", distance, Distance)
        if not dtype.is_floating_point or max_elements < 1:
            msg = f"References need a floating type and `max_elements` at least 1; got {dtype} and {max_elements}."
            raise ValueError(msg)
        self.patch_distance = patch_distance
        self.distance = distance
        self.max_elements = max_elements
        self.compute_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        # Sizes are known after fit, or from the state that is loaded.
        self.register_buffer("references", torch.empty(0, 0, 0, 0, dtype=dtype))
        self.register_buffer("image_index", torch.empty(0, 0, 0, dtype=torch.long))
        self.register_buffer("half_norms", torch.empty(0, 0, 0, dtype=self.compute_dtype))
        # In float64, which not every device can hold.
        self.register_buffer("centre_parts", torch.empty(3, 0))
        self.register_buffer("whitening_parts", torch.empty(3, 0, 0))

    @property
    def centre(self) -> Tensor:
        """Mean of the references, (D,), empty for ``"manhattan"``; float64 where the device has it."""
        return from_parts(self.centre_parts)

    @property
    def whitening(self) -> Tensor:
        """Whitening, (D, D), empty without one; float64 where the device has it."""
        return from_parts(self.whitening_parts)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Version 0.1 kept both in float64.
        for name in ("centre", "whitening"):
            if (values := state_dict.pop(prefix + name, None)) is not None:
                state_dict[f"{prefix}{name}_parts"] = in_parts(values)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def is_fitted(self) -> bool:
        """Whether there are references."""
        return self.references.numel() > 0

    # ------------------------------------------------------------------ references

    def fit(self, features: Tensor, image_index: Tensor | None = None) -> None:
        """Take references from whole images.

        Args:
            features: Features of all normal training images, shape ``(N, rows, cols, D)``.
            image_index: Number of each image, shape ``(N,)``. Defaults to ``0 … N-1``.

        Raises:
            ValueError: If there are no features, or if any is not finite.
        """
        if features.ndim != 4 or features.numel() == 0:
            msg = f"The reference bank is empty: need features (N, rows, cols, D), got shape {tuple(features.shape)}."
            raise ValueError(msg)
        n, rows, cols, _ = features.shape
        images = torch.arange(n) if image_index is None else image_index
        self.fit_metric(features)
        self.set_references(
            features.permute(1, 2, 0, 3),
            images.to(features.device).expand(rows, cols, n),
        )

    def fit_metric(self, features: Tensor) -> None:
        """Fix what the distance itself learns: the whitening, and the centre.

        Args:
            features: Reference features with ``D`` in the last dimension; all others are samples.

        Raises:
            ValueError: If any feature is not finite.
        """
        parts = features.split(256)
        if not all(part.isfinite().all() for part in parts):
            msg = "The reference features hold NaN or infinite values: the encoder has diverged or its input is broken."
            raise ValueError(msg)
        precise = features if has_float64(features.device) else features.cpu()
        if self.distance in _WHITENED:
            centre, whitening = whitening_matrix(precise)
            self.centre_parts = in_parts(centre).to(features.device)
            self.whitening_parts = in_parts(whitening).to(features.device)
        elif self.distance != "manhattan":
            # Distances do not change when the origin moves, but products of short vectors lose fewer digits.
            vectors = (self._directions(_in_range(part.double())) for part in precise.split(256))
            sums = torch.stack([part.flatten(0, -2).sum(0) for part in vectors])
            self.centre_parts = in_parts(sums.sum(0) / (features.numel() // features.shape[-1])).to(features.device)

    def set_references(self, features: Tensor, image_index: Tensor) -> None:
        """Store references, after :meth:`fit_metric`.

        Args:
            features: The same number M of references for each cell, shape ``(rows, cols, M, D)``.
            image_index: Training image of each, shape ``(rows, cols, M)``.

        Raises:
            ValueError: If half precision cannot hold the features.
        """
        rows, cols, m, dim = features.shape
        largest = lost = 0.0
        references = torch.empty(rows, cols, m, dim, dtype=self.references.dtype, device=features.device)
        half_norms = torch.empty(rows, cols, m, dtype=self.compute_dtype, device=features.device)
        for row in range(rows):
            exact = self.to_bank_space(features[row])
            references[row] = exact
            if references.dtype == torch.float16:
                largest = max(largest, float(exact.abs().amax()))
                lost = max(lost, float((references[row].to(exact.dtype) - exact).abs().amax()))
            half_norms[row] = self.to_product_space(references[row]).square().sum(-1) / 2
        if lost > 1e-3 * largest:  # rounding to 11 bits loses half of it at most
            msg = (
                f"float16 cannot hold references whose largest entry is {largest:.3g}: it ends at 65504, and loses "
                "digits below 6e-5; store them in float32 (bank_dtype) or scale the features."
            )
            raise ValueError(msg)
        self.references, self.half_norms = references, half_norms
        self.image_index = image_index.to(torch.long).contiguous()

    def to_bank_space(self, features: Tensor) -> Tensor:
        """Map features to where references are stored.

        Args:
            features: Features ``(..., D)``.

        Returns:
            Tensor of the same shape in the type of computation.
        """
        if self.distance in _WHITENED:
            # In float64: what is rounded here is lost to the difference of two near neighbours.
            features = (widen(features) - self.centre) @ self.whitening
        if self.distance in _ANGULAR:
            features = _in_range(features)
        return features.to(self.compute_dtype)

    def extend(self, features: Tensor) -> None:
        """Add whole images to the references; what the distance has learned, whitening and centre, stays.

        Args:
            features: Features of other normal images, shape ``(n, rows, cols, D)``. They are numbered on from the
                highest ``image_index``.

        Raises:
            ValueError: If the bank is empty, the features do not fit it, or half precision cannot hold them.
        """
        rows, cols, _, dim = self.references.shape
        if not self.is_fitted or features.ndim != 4 or tuple(features.shape[1:]) != (rows, cols, dim):
            msg = f"Features {tuple(features.shape)} cannot join a bank of {rows}x{cols} cells and length {dim}."
            raise ValueError(msg)
        before = self.references, self.image_index, self.half_norms
        first = int(self.image_index.max()) + 1
        images = torch.arange(first, first + len(features), device=features.device).expand(rows, cols, -1)
        self.set_references(features.permute(1, 2, 0, 3), images)
        self.references = torch.cat([before[0], self.references], dim=2)
        self.image_index = torch.cat([before[1], self.image_index], dim=2)
        self.half_norms = torch.cat([before[2], self.half_norms], dim=2)

    def _directions(self, features: Tensor) -> Tensor:
        """Unit vectors for cosine, for which ``1 - cos`` is half the squared Euclidean distance."""
        return F.normalize(features, dim=-1) if self.distance in _ANGULAR else features

    def to_product_space(self, stored: Tensor) -> Tensor:
        """Map from the bank's space to where products rank references: Euclidean, with their centre at zero.

        Args:
            stored: Features as :meth:`to_bank_space` gives them, ``(..., D)``.

        Returns:
            Tensor of the same shape in the type of computation.
        """
        stored = stored.to(self.compute_dtype)
        if self.distance in ("mahalanobis", "manhattan"):
            return stored
        directions = self._directions(stored)
        return directions if self.distance in _WHITENED else directions - self.centre.to(stored.dtype)

    # ---------------------------------------------------------------------- search

    def forward(self, queries: Tensor, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Search.

        Args:
            queries: Features of shape ``(B, rows, cols, D)`` on the references' grid.
            exclude: For each query image, the training image it must not match (its own), shape ``(B,)``. Defaults to
                ``None``: every reference counts.

        Returns:
            Distance to the nearest reference, shape ``(B, rows, cols)``, and which reference it is, shape
            ``(B, rows, cols, 3)`` as (image, row, column). Where ``exclude`` leaves no reference, the distance is
            infinite and the index -1.

        Raises:
            ValueError: If the bank is empty or the queries do not fit to it.
        """
        if not self.is_fitted:
            msg = "The reference bank is empty: fit it on normal training images before searching."
            raise ValueError(msg)
        rows, cols, _, dim = self.references.shape
        if queries.ndim != 4 or tuple(queries.shape[1:]) != (rows, cols, dim):
            msg = (
                f"Queries of shape {tuple(queries.shape)} do not fit the bank's grid {rows}x{cols} and feature length "
                f"{dim}: use the image size and encoder the bank was built with."
            )
            raise ValueError(msg)
        if exclude is not None and exclude.shape != queries.shape[:1]:
            msg = f"`exclude` needs one image for each query: {len(queries)} queries, got {tuple(exclude.shape)}."
            raise ValueError(msg)
        if torch.compiler.is_exporting():
            return self._search(queries, exclude)
        with full_precision(queries.device):
            # Keeps a chunk at 64 references or more, whatever the batch.
            step = max(1, self.max_elements // (64 * self._window_cells()))
            parts = [
                self._search(queries[i : i + step], None if exclude is None else exclude[i : i + step])
                for i in range(0, len(queries), step)
            ]
        if not parts:
            return queries.new_empty(0, rows, cols), self.image_index.new_empty(0, rows, cols, 3)
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _search(self, queries: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, cols, m, _ = self.references.shape
        # Cells first: (cells, B, D).
        x = self.to_bank_space(queries.flatten(1, 2).transpose(0, 1))
        score, winner = self._nearest(x, exclude)
        found = score > float("-inf")
        winner = torch.where(found, winner, 0)
        distance = self._direct(x, winner, score)
        if not torch.compiler.is_exporting() and self.distance != "manhattan":
            doubtful = found & self._doubtful(x, distance)
            if doubtful.any():
                winner = self._nearest_direct(x, doubtful, winner, exclude)
                distance = self._direct(x, winner, score)
        distance = torch.where(found, distance, float("inf"))
        cell = winner // m
        index = torch.stack((self.image_index.flatten()[winner], cell // cols, cell % cols), dim=-1)
        index = torch.where(found.unsqueeze(-1), index, -1)
        return distance.transpose(0, 1).unflatten(1, (rows, cols)), index.transpose(0, 1).unflatten(1, (rows, cols))

    def _nearest(self, x: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        """Best score and flat position of the reference with it, both of shape (cells, B)."""
        rows, cols, m, dim = self.references.shape
        cells, exporting = rows * cols, torch.compiler.is_exporting()
        windows = table = valid = None
        if self._searches_everywhere():
            # One group: all queries against all references.
            groups, per_group = 1, cells * m
        else:
            # A group for each reference cell: the queries in the window around it.
            windows, table, valid = (tensor.to(x.device) for tensor in self._windows())
            groups, per_group = cells, m
        members = self._window_cells()

        references = self.references.reshape(groups, per_group, dim)
        half_norms = self.half_norms.reshape(groups, 1, per_group)
        images = self.image_index.reshape(groups, 1, 1, per_group)
        limit, queries_each = (_EXPORT_ELEMENTS, members) if exporting else (self.max_elements, members * x.shape[1])
        if exporting and self.distance == "manhattan":
            queries_each *= dim
        m_step = min(per_group, max(1, limit // queries_each))
        g_step = min(groups, max(1, limit // (queries_each * m_step)))

        scores, places = [], []
        for g in range(0, groups, g_step):
            part = slice(g, g + g_step)
            group = self.to_product_space(x.unsqueeze(0) if windows is None else x[windows[part]]).flatten(1, 2)
            chunks = []
            for start in range(0, per_group, m_step):
                chunk = slice(start, start + m_step)
                score = self._scores(group, references[part, chunk], half_norms[part, :, chunk])
                if exclude is not None:
                    own = images[part, :, :, chunk] == exclude[:, None]
                    score = score.unflatten(1, (members, -1)).masked_fill(own, float("-inf")).flatten(1, 2)
                best, place = score.max(-1)
                chunks.append((best, place + start))
            best, which = torch.stack([best for best, _ in chunks]).max(0)
            scores.append(best)
            places.append(torch.stack([place for _, place in chunks]).gather(0, which.unsqueeze(0)).squeeze(0))
        score = torch.cat(scores).unflatten(1, (members, -1))
        place = torch.cat(places).unflatten(1, (members, -1))
        if table is None or valid is None:
            return score.squeeze(0), place.squeeze(0)
        # From (group, member of its window) to (query cell, reference cell near it).
        place = place + per_group * torch.arange(groups, device=x.device)[:, None, None]
        score = torch.where(valid.unsqueeze(-1), score.flatten(0, 1)[table], float("-inf"))
        score, which = score.max(1)
        return score, place.flatten(0, 1)[table].gather(1, which.unsqueeze(1)).squeeze(1)

    def _scores(self, queries: Tensor, references: Tensor, half_norms: Tensor) -> Tensor:
        """Larger is nearer: (groups, queries, D) and (groups, references, D) to (groups, queries, references)."""
        if self.distance != "manhattan":
            return torch.baddbmm(half_norms, queries, self.to_product_space(references).transpose(1, 2), beta=-1)
        references = references.to(queries.dtype)
        if torch.compiler.is_exporting():
            return -(queries.unsqueeze(2) - references.unsqueeze(1)).abs().sum(-1)
        return -torch.cdist(queries, references, p=1)

    def _direct(self, x: Tensor, winner: Tensor, score: Tensor) -> Tensor:
        """Distance to the winners by the definition, shape (cells, B)."""
        if self.distance == "manhattan":
            return -score
        nearest = self.references.flatten(0, 2)[winner].to(x.dtype)
        if self.distance in _ANGULAR:
            # In float64: unit vectors rounded to float32 are too coarse for the difference of near neighbours.
            return (self._directions(widen(x)) - self._directions(widen(nearest))).square().sum(-1).to(x.dtype) / 2
        return (x - nearest).square().sum(-1).sqrt()

    def _doubtful(self, x: Tensor, distance: Tensor) -> Tensor:
        """Where rounding of the products may have hidden a reference nearer by more than the tolerance."""
        squared = 2 * distance if self.distance in _ANGULAR else distance.square()
        # Distance 0 cannot be beaten.
        return (squared > 0) & (self.rounding(x, squared) > _TOLERANCE[x.dtype] * squared)

    def rounding(self, x: Tensor, squared: Tensor) -> Tensor:
        """How much nearer, by rounding of the products, another reference may be than the winner.

        A product of D terms is off by about eps·√D·|x||y|, and a reference nearer than the winner has
        |y| ≤ |x| + its distance. Three times that, for two rounded scores and their half norms.

        Args:
            x: Queries in the bank's space, ``(..., D)``.
            squared: Squared Euclidean distance of the winner in the space of the products, ``(...)``.

        Returns:
            Squared distance of the same shape.
        """
        norm = torch.linalg.vector_norm(self.to_product_space(x), dim=-1)
        return 3 * torch.finfo(x.dtype).eps * x.shape[-1] ** 0.5 * norm * (norm + squared.sqrt())

    def _nearest_direct(self, x: Tensor, doubtful: Tensor, winner: Tensor, exclude: Tensor | None) -> Tensor:
        """Search the doubtful queries again, by differences instead of products, float64 where the device has it."""
        rows, cols, m, _ = self.references.shape
        cell, image = doubtful.nonzero(as_tuple=True)
        queries = self._directions(widen(x[cell, image]))
        best = torch.full((len(cell),), float("inf"), dtype=queries.dtype, device=x.device)
        place = winner[cell, image]
        reach = max(rows, cols) if self.patch_distance is None else self.patch_distance
        step = max(1, self.max_elements // m)
        for reference_cell in range(rows * cols):
            row, col = divmod(reference_cell, cols)
            near = ((cell // cols - row).abs() <= reach) & ((cell % cols - col).abs() <= reach)
            references = self._directions(widen(self.references[row, col]))
            for chosen in near.nonzero().squeeze(1).split(step):
                found = torch.cdist(queries[chosen], references, compute_mode="donot_use_mm_for_euclid_dist")
                if exclude is not None:
                    own = self.image_index[row, col] == exclude[image[chosen], None]
                    found = found.masked_fill(own, float("inf"))
                nearest, position = found.min(1)
                better = nearest < best[chosen]
                best[chosen] = torch.where(better, nearest, best[chosen])
                place[chosen] = torch.where(better, position + reference_cell * m, place[chosen])
        winner = winner.clone()
        winner[cell, image] = place
        return winner

    # --------------------------------------------------------------------- windows

    def _searches_everywhere(self) -> bool:
        rows, cols = self.references.shape[:2]
        return self.patch_distance is None or self.patch_distance >= max(rows, cols) - 1

    def _window_cells(self) -> int:
        """Number of query cells compared with one reference cell."""
        rows, cols = self.references.shape[:2]
        if self.patch_distance is None:
            return rows * cols
        return min(rows, 2 * self.patch_distance + 1) * min(cols, 2 * self.patch_distance + 1)

    def _windows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which cells meet.

        Windows have one size; at the border they are shifted inward, and cells too far away are masked afterwards.

        Returns:
            ``windows`` (cells, W): the cells in the window around each cell. ``table`` (cells, W): for query cell c
            and the v-th cell r of its window, the place of the pair in a list of all (r, member of r's window).
            ``valid`` (cells, W): whether r is within the patch distance of c.
        """
        rows, cols = self.references.shape[:2]
        reach = self.patch_distance or 0
        row_start, row_size = _window_starts(rows, reach)
        col_start, col_size = _window_starts(cols, reach)
        cell = torch.arange(rows * cols)
        row, col = cell // cols, cell % cols
        near_row = (row_start[row][:, None, None] + torch.arange(row_size)[:, None]).expand(-1, -1, col_size)
        near_col = (col_start[col][:, None, None] + torch.arange(col_size)).expand(-1, row_size, -1)
        near_row, near_col = near_row.flatten(1), near_col.flatten(1)
        windows = near_row * cols + near_col
        # Place of the query in the reference's window; may fall outside where the pair is too far apart.
        row_place, col_place = row[:, None] - row_start[near_row], col[:, None] - col_start[near_col]
        valid = ((near_row - row[:, None]).abs() <= reach) & ((near_col - col[:, None]).abs() <= reach)
        table = windows * row_size * col_size + row_place * col_size + col_place
        return windows, torch.where(valid, table, 0), valid


def _in_range(vectors: Tensor) -> Tensor:
    """Bring the largest entry of each to 1 … 2 by a power of two, which rounds nothing; zero vectors stay."""
    largest = vectors.abs().amax(-1, keepdim=True)
    return vectors / torch.exp2(torch.floor(torch.log2(torch.where(largest > 0, largest, 1.0))))


def _window_starts(length: int, reach: int) -> tuple[Tensor, int]:
    """First cell of the window around each cell of an axis, and the windows' common size."""
    size = min(length, 2 * reach + 1)
    return (torch.arange(length) - reach).clamp(0, length - size), size


def top_q_mean(scores: Tensor, q: float) -> Tensor:
    """Mean of the highest part of the scores of each image (ours; the paper takes the highest score).

    Args:
        scores: Scores of shape ``(B, ...)``.
        q: Part to average, in ``(0, 1]``; at least one score is taken.

    Returns:
        Tensor of shape ``(B,)``.

    Raises:
        ValueError: If ``q`` is out of range.
    """
    if not 0 < q <= 1:
        msg = f"`q` is the part of the scores to average and must lie in (0, 1], got {q}."
        raise ValueError(msg)
    scores = scores.flatten(1)
    if q == 1:
        return scores.mean(1)  # nothing to leave out, so nothing to sort
    return scores.topk(max(1, round(q * scores.shape[1])), dim=1).values.mean(1)
