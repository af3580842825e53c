"""Scores of each density against scikit-learn, place by place; the SVDD against a solver; exports against torch."""

from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import KernelDensity, NearestNeighbors
from sklearn.svm import OneClassSVM
from torch import Tensor, nn

from anomalib_cxr.models.feature_density.densities import DENSITIES, build_density

OPTIONS = {"svm": {"nu": 0.3}, "pca": {"components": 3}, "knn": {"neighbours": 3}}


def features(count: int, seed: int, places: int = 3, dim: int = 6) -> Tensor:
    """Correlated features with a mean of their own at each place."""
    rng = np.random.default_rng(7)
    mixing, mean = rng.normal(size=(places, dim, dim)), 5 * rng.normal(size=(places, 1, dim))
    drawn = np.random.default_rng(seed).normal(size=(places, count, dim))
    return torch.from_numpy(drawn @ mixing + mean).float()


NORMAL, ASKED = features(40, 0), 1.5 * features(20, 1)


def scikit_learn(name: str, normal: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Higher is more abnormal."""
    if name == "svm":
        return -OneClassSVM(nu=0.3).fit(normal).decision_function(asked)
    if name == "pca":
        pca = PCA(3).fit(normal)
        return np.square(pca.inverse_transform(pca.transform(asked)) - asked).sum(axis=1)
    if name == "gaussian":
        return np.sqrt(LedoitWolf().fit(normal).mahalanobis(asked))
    if name == "knn":
        return NearestNeighbors(n_neighbors=3).fit(normal).kneighbors(asked)[0].mean(axis=1)
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (normal, asked)]
    return -KernelDensity().fit(unit[0]).score_samples(unit[1]) - normal.shape[1] / 2 * np.log(2 * np.pi)


@pytest.mark.parametrize("name", DENSITIES)
def test_scores_are_scikit_learns_at_each_place(name: str) -> None:
    density = build_density(name, OPTIONS.get(name, {}))
    density.fit(NORMAL)
    pairs = zip(NORMAL.double().numpy(), ASKED.double().numpy(), strict=True)
    expected = [scikit_learn(name, *pair) for pair in pairs]
    np.testing.assert_allclose(density(ASKED).numpy(), expected, rtol=2e-5, atol=2e-5)


def test_share_of_variance_chooses_as_many_components_as_each_place_needs() -> None:
    normal = NORMAL.clone()
    normal[1] = normal[1, :, :1] * torch.arange(1.0, 7.0)  # one direction
    density = build_density("pca", {"components": 0.8})
    density.fit(normal)
    needed = [PCA(0.8).fit(place.double().numpy()).n_components_ for place in normal]
    assert needed[1] == 1 < max(needed)
    assert density.axes.square().sum(dim=-1).gt(0.5).sum(dim=-1).tolist() == needed


def test_one_class_svm_ranks_as_the_support_vector_data_description() -> None:
    normal, asked = NORMAL[0, :15].double().numpy(), ASKED[0].double().numpy()
    density = build_density("svm", {"nu": 0.3})
    density.fit(NORMAL[:1, :15])
    gamma = 1 / (normal.shape[1] * normal.var())
    kernel = np.exp(-gamma * cdist(normal, normal, "sqeuclidean"))
    # Smallest ball around the images of the points, in the dual: Tax and Duin 2004, equation 10.
    solved = minimize(
        lambda a: a @ kernel @ a - a @ kernel.diagonal(),
        np.full(15, 1 / 15),
        jac=lambda a: 2 * kernel @ a - kernel.diagonal(),
        bounds=[(0, 1 / (0.3 * 15))] * 15,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: np.ones(15)},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    ball = 1 - 2 * np.exp(-gamma * cdist(asked, normal, "sqeuclidean")) @ solved.x
    found = density(ASKED[:1])[0].numpy()
    assert np.array_equal(np.argsort(found), np.argsort(ball))
    assert np.corrcoef(found, ball)[0, 1] > 1 - 1e-6


@pytest.mark.parametrize("name", DENSITIES)
def test_places_where_all_is_the_same_score_what_leaves_them(name: str) -> None:
    normal = NORMAL.clone()
    normal[2] = torch.arange(1.0, 7.0)
    density = build_density(name, {})
    density.fit(normal)
    same, other = density(normal[:, :1])[2], density(normal[:, :1].flip(-1))[2]
    assert torch.isfinite(same)
    assert torch.isfinite(other)
    assert other > same


class All(nn.Module):
    """Every density, so that one export serves for all."""

    def __init__(self) -> None:
        super().__init__()
        self.densities = nn.ModuleList(build_density(name, OPTIONS.get(name, {})) for name in DENSITIES)
        for density in self.densities:
            density.fit(NORMAL)

    def forward(self, features: Tensor) -> list[Tensor]:
        return [density(features) for density in self.densities]


def test_exported_scores_are_torchs(tmp_path: Path) -> None:
    network, path = All().eval(), tmp_path / "densities.onnx"
    axes = {"features": {1: torch.export.Dim("batch")}}
    torch.onnx.export(network, (ASKED,), path, dynamo=True, opset_version=18, dynamic_shapes=axes, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for asked in (ASKED, ASKED[:, :1]):
        runs = (session.run(None, {"features": asked.numpy()}), list(compiled(asked.numpy()).values()))
        for found in runs:
            for name, expected, values in zip(DENSITIES, network(asked), found, strict=True):
                scale = float(network(ASKED)[list(DENSITIES).index(name)].std())
                assert np.abs(values - expected.numpy()).max() < 1e-5 * scale, name


def test_fitted_densities_load_into_fresh_ones() -> None:
    network, fresh = All(), nn.ModuleList(build_density(name, OPTIONS.get(name, {})) for name in DENSITIES)
    fresh.load_state_dict(network.densities.state_dict())
    for density, expected in zip(fresh, network(ASKED), strict=True):
        assert torch.equal(density(ASKED), expected)


def test_faults_name_themselves() -> None:
    for name, options, message in (
        ("kd", {}, r"density must be one of 'kde'.*did you mean 'kde'\?"),
        ("knn", {"neighbors": 3}, r"density=knn has no option 'neighbors': did you mean 'neighbours'\?"),
        ("gaussian", {"nu": 0.1}, "density=gaussian has no option 'nu': it has none."),
        ("svm", {"nu": 0}, "nu must lie in"),
        ("pca", {"components": 1.5}, "components must be a share"),
        ("knn", {"neighbours": 0}, "neighbours must be a whole number"),
        ("kde", {"bandwidth": 0}, "bandwidth must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            build_density(name, options)
    for name in DENSITIES:
        with pytest.raises(RuntimeError, match=r"no normal images|bank is empty"):
            build_density(name, {})(ASKED)
        with pytest.raises(ValueError, match="not finite"):
            build_density(name, {}).fit(torch.full((1, 3, 2), torch.nan))
