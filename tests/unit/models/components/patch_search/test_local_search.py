"""Local search against a plain double loop over the definition."""

import io
import itertools

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.spatial import distance as scipy_distance
from sklearn.covariance import LedoitWolf

from anomalib_cxr.models.components.patch_search.local_search import LocalSearch, top_q_mean

DISTANCES = ("euclidean", "manhattan", "cosine", "mahalanobis", "whitened_cosine")
WHITENED = ("mahalanobis", "whitened_cosine")
REACHES = (0, 1, 2, "all")
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}


def metric(name, bank):
    if name in WHITENED:
        estimate = LedoitWolf().fit(bank.reshape(-1, bank.shape[-1]))
        precision = np.linalg.inv(estimate.covariance_)
        if name == "mahalanobis":
            return lambda x, y: scipy_distance.mahalanobis(x, y, precision)
        # Any root of the precision whitens; the search takes another one.
        root, mean = np.linalg.cholesky(precision), estimate.location_
        return lambda x, y: angular((x - mean) @ root, (y - mean) @ root)
    if name == "cosine":
        return angular
    return {"euclidean": scipy_distance.euclidean, "manhattan": scipy_distance.cityblock}[name]


def angular(x, y):
    """1 - cos as half the squared difference of unit vectors, without its cancellation."""
    return ((x / np.linalg.norm(x) - y / np.linalg.norm(y)) ** 2).sum() / 2


def loop(bank, queries, reach, name, exclude=None):
    """Distance to the nearest allowed reference of each query cell, and all distances (for ties)."""
    bank, queries = bank.double().numpy(), queries.double().numpy()
    measure = metric(name, bank)
    n, rows, cols, _ = bank.shape
    result = np.full(queries.shape[:3], np.inf)
    for b, row, col in np.ndindex(*queries.shape[:3]):
        for image, i, j in itertools.product(range(n), range(rows), range(cols)):
            if exclude is not None and exclude[b] == image:
                continue
            if reach != "all" and max(abs(i - row), abs(j - col)) > reach:
                continue
            result[b, row, col] = min(result[b, row, col], measure(queries[b, row, col], bank[image, i, j]))
    return result


def check(search, bank, queries, reach, name, exclude=None, rtol=None):
    distance, index = search(queries, exclude)
    expected = loop(bank, queries, reach, name, exclude)
    np.testing.assert_allclose(distance.numpy(), expected, rtol=rtol or TOLERANCE[queries.dtype])
    # The reference that is named lies near enough, is not excluded, and has that distance.
    measure = metric(name, bank.double().numpy())
    for b, row, col in np.ndindex(*distance.shape):
        image, i, j = index[b, row, col].tolist()
        assert reach == "all" or max(abs(i - row), abs(j - col)) <= reach
        assert exclude is None or image != exclude[b]
        named = measure(queries[b, row, col].double().numpy(), bank[image, i, j].double().numpy())
        assert named == pytest.approx(expected[b, row, col], rel=rtol or TOLERANCE[queries.dtype])


def draw(shape, dtype, seed=0, offset=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) + offset


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("name", DISTANCES)
def test_equals_the_definition_on_odd_grids(name, reach, dtype):
    bank = draw((5, 5, 3, 6), dtype)
    # Far queries, near ones, and two references that are nearly the same.
    bank[3] = bank[1] + 1e-2 * draw((5, 3, 6), dtype, 1, 0)
    queries = torch.cat((draw((1, 5, 3, 6), dtype, 2), bank[1:2] + 1e-2 * draw((1, 5, 3, 6), dtype, 3, 0)))
    search = LocalSearch(reach, name, dtype)
    search.fit(bank)
    check(search, bank, queries, reach, name)


@pytest.mark.parametrize("name", DISTANCES)
def test_leave_one_out_never_finds_the_image_itself(name):
    bank = draw((4, 4, 4, 5), torch.float64)
    search = LocalSearch(1, name, torch.float64)
    search.fit(bank)
    exclude = torch.tensor([2, 0])
    check(search, bank, bank[[2, 0]], 1, name, exclude)
    if name not in WHITENED:
        # Nor may the whole result depend on it, beyond what the covariance learned from it.
        without = LocalSearch(1, name, torch.float64)
        without.fit(bank[[0, 1, 3]])
        torch.testing.assert_close(search(bank[2:3], exclude[:1])[0], without(bank[2:3])[0])


@pytest.mark.parametrize("name", ["euclidean", "cosine"])
@pytest.mark.parametrize("noise", [1e-3, 1e-4])
def test_float32_finds_the_nearest_of_crowded_references(name, noise):
    """References so close together, so far from the origin, that float32 products cannot tell them apart."""
    bank = 10 + noise * draw((40, 2, 2, 16), torch.float32, 1, 0)
    bank[0] = draw((2, 2, 16), torch.float32, 2, 0)
    queries = 10 + noise * draw((2, 2, 2, 16), torch.float32, 3, 0)
    search = LocalSearch(0, name)
    search.fit(bank)
    check(search, bank, queries, 0, name)
    # The second search, too, leaves out what is excluded.
    _, index = search(queries)
    check(search, bank, queries, 0, name, exclude=index[:, 0, 0, 0])


def test_products_alone_would_fail_that_test(monkeypatch):
    bank = 10 + 1e-4 * draw((40, 2, 2, 16), torch.float32, 1, 0)
    bank[0] = draw((2, 2, 16), torch.float32, 2, 0)
    queries = 10 + 1e-4 * draw((2, 2, 2, 16), torch.float32, 3, 0)
    search = LocalSearch(0, "euclidean")
    search.fit(bank)
    monkeypatch.setattr(search, "_doubtful", lambda x, distance: torch.zeros_like(distance, dtype=torch.bool))
    with pytest.raises(AssertionError):
        check(search, bank, queries, 0, "euclidean")


def nearest_of_units(bank, queries, name):
    """Squared distance to the nearest of (M, cells, D), in float64; of unit vectors for the cosine."""
    bank, queries = bank.double(), queries.double()
    if name == "cosine":
        bank, queries = (part / part.norm(dim=-1, keepdim=True) for part in (bank, queries))
    return (bank - queries).square().sum(-1).amin(0)


def squared(distance, name):
    return 2 * distance.double() if name == "cosine" else distance.double().square()


@pytest.mark.parametrize("gap", [1e-4, 2e-4, 4e-4, 8e-4])
@pytest.mark.parametrize("name", ["euclidean", "cosine"])
def test_second_search_settles_whatever_float32_products_may_confuse(name, gap):
    """At each of 1600 cells two references, one nearer by 3 parts in 10,000: near the size of the products' rounding.

    Of the gaps, all are doubtful by the bound on that rounding; by a hundredth of it, the wider ones would not be, and
    the wrong reference would be named.
    """
    side = 40
    unit = lambda *shape, seed: torch.nn.functional.normalize(draw((*shape, 16), torch.float64, seed, 0), dim=-1)  # noqa: E731
    queries = unit(1, side, side, seed=1)
    lengths = torch.tensor([gap, gap * (1 + 3e-4)], dtype=torch.float64).sqrt()[:, None, None, None]
    bank = queries + lengths * unit(2, side, side, seed=2)
    swapped = torch.rand(side, side, 1, generator=torch.Generator().manual_seed(3)) < 0.5
    bank, queries = torch.where(swapped, bank.flip(0), bank).float(), queries.float()
    search = LocalSearch(0, name)
    search.fit(bank)
    expected = nearest_of_units(bank, queries, name)
    found = squared(search(queries)[0][0], name)
    assert float(((found - expected) / expected).max()) < 1e-5


def test_cosine_is_seen_from_the_mean_direction(monkeypatch):
    """Where all directions nearly agree, products about the origin lose the digits that tell them apart."""
    bank = torch.ones(60, 4, 4, 8) + 0.02 * draw((60, 4, 4, 8), torch.float32, 1, 0)
    queries = torch.ones(20, 4, 4, 8) + 0.02 * draw((20, 4, 4, 8), torch.float32, 2, 0)
    bank = bank * torch.linspace(0.5, 20, 60)[:, None, None, None]  # lengths do not count, not for the centre either
    search = LocalSearch(0, "cosine")
    search.fit(bank)
    units = bank.double() / bank.double().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(search.centre, units.mean(dim=(0, 1, 2)), rtol=1e-12, atol=1e-12)
    assert search.half_norms.max() < 0.05  # 0.5 about the origin
    # As in an exported graph, there is no second search.
    monkeypatch.setattr(search, "_doubtful", lambda x, distance: torch.zeros_like(distance, dtype=torch.bool))
    for query, distance in zip(queries, search(queries)[0], strict=True):
        expected = nearest_of_units(bank, query, "cosine")
        assert float(((squared(distance, "cosine") - expected) / expected).max()) < 2e-5


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("reach", [1, "all"])
@pytest.mark.parametrize("limit", [1, 7, 60, 500])
def test_chunks_change_nothing(name, reach, limit):
    bank, queries = draw((6, 3, 4, 5), torch.float64), draw((5, 3, 4, 5), torch.float64, 1)
    whole, chunked = LocalSearch(reach, name, torch.float64), LocalSearch(reach, name, torch.float64, limit)
    whole.fit(bank)
    chunked.fit(bank)
    for exclude in (None, torch.tensor([0, 1, 2, 3, 9])):
        for got, expected in zip(chunked(queries, exclude), whole(queries, exclude), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
def test_memory_of_scores_is_bounded(name, monkeypatch):
    limit, sizes = 2000, []
    bank, queries = draw((50, 4, 4, 3), torch.float32), draw((20, 4, 4, 3), torch.float32, 1)
    original = LocalSearch._scores

    def spy(self, *args):
        scores = original(self, *args)
        sizes.append(scores.numel())
        return scores

    monkeypatch.setattr(LocalSearch, "_scores", spy)
    for reach in (1, "all"):
        search = LocalSearch(reach, name, max_elements=limit)
        search.fit(bank)
        search(queries)
    assert max(sizes) <= limit
    assert sum(sizes) >= 20 * 16 * 50 * 16


@pytest.mark.parametrize("name", DISTANCES)
def test_a_reference_finds_itself_at_distance_zero(name):
    bank = draw((5, 3, 3, 8), torch.float32)
    search = LocalSearch(1, name)
    search.fit(bank)
    distance, index = search(bank)
    assert distance.abs().max() < 1e-6
    image, row, col = torch.meshgrid(torch.arange(5), torch.arange(3), torch.arange(3), indexing="ij")
    assert torch.equal(index, torch.stack((image, row, col), -1))


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_features_have_distance_zero(name, value):
    search = LocalSearch(1, name)
    search.fit(torch.full((4, 3, 3, 5), value))
    distance, _ = search(torch.full((2, 3, 3, 5), value), torch.tensor([0, 1]))
    assert torch.equal(distance, torch.zeros(2, 3, 3))
    other, _ = search(torch.arange(5.0).expand(1, 3, 3, 5))
    assert other.isfinite().all()
    assert (other > 0).all()


@pytest.mark.parametrize("name", WHITENED)
def test_whitening_with_fewer_samples_than_features_is_finite(name):
    bank = draw((2, 1, 2, 30), torch.float64)
    search = LocalSearch("all", name, torch.float64)
    search.fit(bank)
    check(search, bank, draw((1, 1, 2, 30), torch.float64, 5), "all", name)


def test_excluding_every_reference_gives_infinity():
    search = LocalSearch(0)
    search.fit(torch.rand(1, 2, 2, 3))
    distance, index = search(torch.rand(2, 2, 2, 3), torch.tensor([0, 1]))
    assert distance[0].isinf().all()
    assert (index[0] == -1).all()
    assert distance[1].isfinite().all()


def test_half_precision_references_halve_memory_and_hardly_move_distances():
    bank, queries = draw((20, 3, 3, 16), torch.float32), draw((4, 3, 3, 16), torch.float32, 1)
    full, half = LocalSearch(1, "euclidean"), LocalSearch(1, "euclidean", torch.float16)
    full.fit(bank)
    half.fit(bank)
    assert half.references.nbytes * 2 == full.references.nbytes
    torch.testing.assert_close(half(queries)[0], full(queries)[0], rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
@pytest.mark.parametrize("scale", [1e5, 1e4, 1e-4, 1e-6])
def test_half_precision_holds_references_or_refuses_them(name, scale):
    """Half precision ends at 65504 and 6e-8: all that is taken has right distances."""
    bank, queries = scale * draw((20, 3, 3, 16), torch.float32), scale * draw((4, 3, 3, 16), torch.float32, 1)
    half = LocalSearch(1, name, torch.float16)
    if scale in (1e5, 1e-6):
        with pytest.raises(
            ValueError, match=r"float16 cannot hold references whose largest entry is .* \(bank_dtype\)"
        ):
            half.fit(bank)
        return
    half.fit(bank)
    np.testing.assert_allclose(half(queries)[0].numpy(), loop(bank, queries, 1, name), rtol=3e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-11, 1e-6, 1e6, 1e30])
def test_cosine_does_not_depend_on_length(scale, dtype):
    bank, queries = draw((20, 3, 3, 16), torch.float32), draw((4, 3, 3, 16), torch.float32, 1)
    search, scaled = LocalSearch(1, "cosine", dtype), LocalSearch(1, "cosine", dtype)
    search.fit(bank)
    scaled.fit(bank * scale)
    expected = loop(bank * scale, queries * scale, 1, "cosine")
    rtol = 1e-4 if dtype == torch.float32 else 3e-3
    rtol = max(rtol, 1e-2 if scale == 1e-38 else 0)  # what float32 itself holds there has some digits less
    np.testing.assert_allclose(scaled(queries * scale)[0].numpy(), expected, rtol=rtol)
    np.testing.assert_allclose(search(queries)[0].numpy(), expected, rtol=rtol)


@pytest.mark.parametrize("name", ["euclidean", "cosine", "whitened_cosine", "mahalanobis"])
@pytest.mark.parametrize("noise", [1e-3, 1e-4, 1e-5])
def test_an_exported_search_of_crowded_references_is_off_by_rounding_at_most(name, noise, monkeypatch):
    bank = 10 + noise * draw((40, 2, 2, 16), torch.float32, 1, 0)
    bank[0] = draw((2, 2, 16), torch.float32, 2, 0)
    queries = 10 + noise * draw((8, 2, 2, 16), torch.float32, 3, 0)
    search = LocalSearch(0, name)
    search.fit(bank)
    exact = search(queries)[0].double()
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)  # as in the graph: no second search
    exported = search(queries)[0].double()
    x = search.to_bank_space(queries)
    squared, nearest = (2 * d if name.endswith("cosine") else d.square() for d in (exported, exact))
    assert (squared >= nearest * (1 - 1e-5)).all()
    assert (squared <= nearest * (1 + 1e-5) + search.rounding(x, squared.float()).double()).all()


def test_autocast_does_not_touch_the_search():
    search = LocalSearch(1)
    search.fit(torch.rand(9, 3, 3, 16))
    queries = torch.rand(2, 3, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = search(queries)[0]
    assert torch.equal(inside, search(queries)[0])


@pytest.mark.parametrize("name", DISTANCES)
def test_state_loads_into_an_empty_search(name):
    search, loaded = LocalSearch(1, name), LocalSearch(1, name)
    search.fit(draw((6, 3, 4, 5), torch.float32))
    file = io.BytesIO()
    torch.save(search.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    queries = draw((2, 3, 4, 5), torch.float32, 1)
    for got, expected in zip(loaded(queries), search(queries), strict=True):
        assert torch.equal(got, expected)


def test_onnx_runtime_gives_the_same(tmp_path, monkeypatch):
    # Small enough that the graph holds several chunks of each search.
    monkeypatch.setattr("anomalib_cxr.models.components.patch_search.local_search._EXPORT_ELEMENTS", 300)
    searches = [LocalSearch(1, name) for name in DISTANCES]
    searches += [LocalSearch("all", "cosine")]
    for search in searches:
        search.fit(draw((6, 3, 4, 5), torch.float32))
    queries = draw((5, 3, 4, 5), torch.float32, 1)

    class All(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.searches = torch.nn.ModuleList(searches)

        def forward(self, queries):
            return [result for search in self.searches for result in search(queries)]

    # One graph for all: an export takes seconds.
    torch.onnx.export(
        All().eval(),
        (queries[:2],),
        tmp_path / "search.onnx",
        dynamo=True,
        opset_version=18,
        dynamic_shapes={"queries": {0: torch.export.Dim("batch")}},
        verbose=False,
        optimize=False,  # half the time; the whole model is exported with it
    )
    session = onnxruntime.InferenceSession(tmp_path / "search.onnx")
    for batch in (1, 5):
        results = session.run(None, {"queries": queries[:batch].numpy()})
        for search, distance, index in zip(searches, results[::2], results[1::2], strict=True):
            expected = search(queries[:batch])
            np.testing.assert_allclose(distance, expected[0].numpy(), rtol=1e-4)
            np.testing.assert_array_equal(index, expected[1].numpy())


def test_errors_say_what_to_do():
    search = LocalSearch(1)
    with pytest.raises(ValueError, match="bank is empty: fit it"):
        search(torch.rand(1, 2, 2, 3))
    with pytest.raises(ValueError, match="bank is empty"):
        search.fit(torch.empty(0, 2, 2, 3))
    with pytest.raises(ValueError, match="NaN"):
        search.fit(torch.full((2, 2, 2, 3), float("nan")))
    search.fit(torch.rand(4, 2, 2, 3))
    with pytest.raises(ValueError, match="do not fit the bank's grid 2x2"):
        search(torch.rand(1, 3, 2, 3))
    with pytest.raises(ValueError, match="`exclude` needs one image"):
        search(torch.rand(1, 2, 2, 3), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="patch_distance"):
        LocalSearch(-1)
    with pytest.raises(ValueError, match="distance must be one of 'euclidean', 'manhattan'"):
        LocalSearch(1, "chebyshev")  # type: ignore[arg-type]


def test_an_empty_batch_is_an_empty_result():
    search = LocalSearch(1)
    search.fit(torch.rand(4, 2, 2, 3))
    distance, index = search(torch.rand(0, 2, 2, 3))
    assert distance.shape == (0, 2, 2)
    assert index.shape == (0, 2, 2, 3)


def test_top_q_mean_averages_the_highest():
    scores = torch.tensor([[[5.0, 1.0], [3.0, 2.0]]])
    assert top_q_mean(scores, 0.5).tolist() == [4.0]
    assert top_q_mean(scores, 0.01).tolist() == [5.0]
    assert top_q_mean(scores, 1.0).tolist() == [2.75]
    many = torch.rand(3, 1, 40, 30, generator=torch.Generator().manual_seed(0)) - 0.5
    descending = -np.sort(-many.double().numpy().reshape(3, -1), axis=1)
    for q, kept in ((1, 1200), (1.0, 1200), (0.5, 600), (0.001, 1)):
        np.testing.assert_allclose(top_q_mean(many, q).numpy(), descending[:, :kept].mean(1), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="must lie in"):
        top_q_mean(scores, 0)
