"""FeatureDensity's features, scores and maps, made by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import InferenceBatch
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional as F

from anomalib_cxr.models import FeatureDensity
from anomalib_cxr.models.feature_density.torch_model import FeatureDensityModel

SIDE, CELL, N = 64, 16, 9


def films(count: int, seed: int) -> Tensor:
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, SIDE, mode="bilinear").expand(-1, 3, -1, -1)


def build(**arguments: Any) -> FeatureDensityModel:
    torch.manual_seed(0)
    small: dict[str, Any] = {"backbone": "test_resnet", "layers": (-2,), "cell_size": CELL, "image_size": (SIDE, SIDE)}
    return FeatureDensityModel(**small | arguments).eval()


@torch.no_grad()
def scored(model: FeatureDensityModel) -> tuple[InferenceBatch, np.ndarray, np.ndarray]:
    """What the fitted model says of some films, the cells of normal ones, and those of these films."""
    normal, asked = films(N, 0), films(3, 1)
    model.fit(model.features(normal))
    level = [
        model.encoder.model.forward_intermediates(2 * batch[:, :1] - 1, indices=[3], intermediates_only=True)[0]
        for batch in (normal, asked)
    ]
    return model(asked), *(maps.permute(0, 2, 3, 1).double().numpy() for maps in level)


def enlarged(cells: np.ndarray) -> np.ndarray:
    return F.interpolate(torch.from_numpy(cells)[:, None], SIDE, mode="bilinear").numpy()


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def test_local_scores_are_standardised_by_films_the_density_has_not_seen() -> None:
    found, normal, asked = scored(build(density="knn", local=True, unit_length=True, top_q=0.25))
    normal, asked = unit(normal), unit(asked)
    expected = np.empty(asked.shape[:3])
    for row, col in np.ndindex(expected.shape[1:]):

        def nearest(known: np.ndarray, these: np.ndarray) -> np.ndarray:
            return NearestNeighbors(n_neighbors=1).fit(known).kneighbors(these)[0][:, 0]

        place = normal[:, row, col]
        own = [*nearest(place[1::2], place[::2]), *nearest(place[::2], place[1::2])]
        expected[:, row, col] = (nearest(place, asked[:, row, col]) - np.mean(own)) / np.std(own, ddof=1)
    np.testing.assert_allclose(found.anomaly_map.numpy(), enlarged(expected), rtol=1e-3, atol=1e-3)
    highest = np.sort(expected.reshape(3, -1))[:, -4:].mean(axis=1)  # a quarter of 4 x 4 cells
    np.testing.assert_allclose(found.pred_score.numpy(), highest, rtol=1e-3, atol=1e-3)


def test_pooled_score_and_the_map_of_cells_are_of_one_density() -> None:
    found, normal, asked = scored(build(density="gaussian", local=False))
    gaussian = LedoitWolf().fit(normal.mean(axis=(1, 2)))
    score = np.sqrt(gaussian.mahalanobis(asked.mean(axis=(1, 2))))
    np.testing.assert_allclose(found.pred_score.numpy(), score, rtol=1e-3)
    dim = normal.shape[-1]
    of_cells = [
        np.sqrt(gaussian.mahalanobis(part.reshape(-1, dim))).reshape(part.shape[:3]) for part in (normal, asked)
    ]
    expected = (of_cells[1] - of_cells[0].mean(axis=0)) / of_cells[0].std(axis=0, ddof=1)
    np.testing.assert_allclose(found.anomaly_map.numpy(), enlarged(expected), rtol=1e-3, atol=1e-3)


def test_faults_name_themselves() -> None:
    small = {"backbone": "test_resnet", "pre_trained": False, "image_size": SIDE}
    for arguments, message in (
        ({"density": "svmm"}, "did you mean 'svm'"),
        ({"density": "pca", "density_options": {"share": 1}}, "no option 'share': it has components"),
        ({"cell_size": 65}, "cell_size must lie in 1 to the input's 64 pixels, not be 65"),
        ({"top_q": 0}, "top_q must lie in"),
        ({"preset": "best"}, "preset must be one of 'laptop', 'paper'"),
        ({"layers": [7]}, "`layers` must name some of the 5 levels"),
        ({"std": 0}, "`std` must be positive"),
        ({"backbone": "resnet18x"}, "timm knows no model 'resnet18x'"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureDensity(**small | arguments)
    with pytest.raises(ValueError, match="at least four normal training images, got 3"):
        build().fit(torch.rand(3, 4, 4, 192))
