"""Distances in full precision whatever a run allows, and no float64 where a device has none."""

from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import anomalib_cxr.models
from anomalib_cxr.augmentations import jitter_intensity
from anomalib_cxr.devices import on_device
from anomalib_cxr.models.components.full_precision import from_parts, full_precision, in_parts
from anomalib_cxr.models.components.kernel_density import GaussianKernelDensity
from anomalib_cxr.models.components.patch_search import ReferenceBank
from anomalib_cxr.models.components.patch_search.local_search import LocalSearch
from anomalib_cxr.models.ensemble.surprise import Surprise

DISTANCES = ("euclidean", "manhattan", "cosine", "mahalanobis", "whitened_cosine")
MATMUL = torch.backends.cuda.matmul


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def tensor_float_32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products round their factors to 11 bits, as tensor cores do, wherever TensorFloat-32 is allowed."""

    def rounded(values: torch.Tensor) -> torch.Tensor:
        mantissa, exponent = torch.frexp(values)
        return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)

    exact, matmul = torch.baddbmm, torch.Tensor.__matmul__

    def baddbmm(added, first, second, **arguments):
        if MATMUL.fp32_precision == "tf32":
            first, second = rounded(first), rounded(second)
        return exact(added, first, second, **arguments)

    def product(first, second):
        if MATMUL.fp32_precision == "tf32" and first.dtype == torch.float32:
            first, second = rounded(first), rounded(second)
        return matmul(first, second)

    monkeypatch.setattr(torch, "baddbmm", baddbmm)
    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "mahalanobis", "whitened_cosine"])
def test_search_is_exact_where_a_run_allows_tensor_float_32(distance: str, tensor_float_32: None) -> None:
    bank, queries = 4 + draw(100, 3, 3, 32), 4 + draw(60, 3, 3, 32, seed=1)
    bank[50:] = bank[:50] + 1e-2 * draw(50, 3, 3, 32, seed=2)  # twins, whose order TensorFloat-32 does not always tell
    precise = ReferenceBank(1, distance, "float64")
    precise.fit(bank)
    expected, places = precise(queries)
    search = ReferenceBank(1, distance)
    search.fit(bank.float())
    found, index = search(queries.float())
    assert torch.equal(index, places)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    assert torch.get_float32_matmul_precision() == "high"  # as the run had it


def test_kernel_density_is_exact_where_a_run_allows_tensor_float_32(tensor_float_32: None) -> None:
    references, queries = 1 + draw(50, 32), 1 + draw(8, 32, seed=1)
    density = GaussianKernelDensity(0.01)
    density.fit(references)
    unit = [vectors / vectors.norm(dim=1, keepdim=True) for vectors in (queries, references)]
    expected = -torch.logsumexp(-torch.cdist(*unit).square() / (2 * 0.01**2), dim=1) + torch.tensor(50.0).log()
    torch.testing.assert_close(density(queries.float()).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_what_was_allowed_is_allowed_again(allowed: str) -> None:
    torch.set_float32_matmul_precision(allowed)
    try:
        with full_precision(torch.device("cpu")):
            assert MATMUL.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision("highest")


def test_parts_hold_float64_to_the_last_bit() -> None:
    values = draw(1000) * 10.0 ** torch.linspace(-20, 30, 1000, dtype=torch.float64)
    assert in_parts(values).dtype == torch.float32
    assert torch.equal(from_parts(in_parts(values)), values)


def wide(module: torch.nn.Module) -> list[str]:
    return [name for name, values in module.named_buffers() if values.dtype == torch.float64]


@pytest.mark.parametrize("name", anomalib_cxr.models.__all__)
def test_no_detector_holds_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: None)
    try:
        module = getattr(anomalib_cxr.models, name)()
    except ValueError:  # an ensemble holds others' buffers, and these of its own
        module = Surprise([0.0, 1.0, 2.0])
    assert wide(module) == []


@pytest.mark.parametrize("distance", DISTANCES)
def test_search_needs_no_float64(distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without it, imitated: what is fitted comes from the CPU, what is searched is float32."""
    bank, queries = draw(20, 3, 3, 8).float(), draw(3, 3, 3, 8, seed=1).float()
    bank[3] = bank[1] + 1e-4  # crowded, so that there is a second search
    search = ReferenceBank(1, distance, feature_dim=6)
    search.fit(bank)
    assert wide(search) == []
    expected, places = search(queries)

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            for value in result if isinstance(result, tuple) else (result,):
                assert not isinstance(value, torch.Tensor) or value.dtype != torch.float64, function
            return result

    monkeypatch.setattr("anomalib_cxr.devices.has_float64", lambda device: False)
    with NoFloat64():
        found, index = search(queries)
        search(bank[:2] + 1e-5)
    assert torch.equal(index, places)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_augmentations_move_no_float64_to_a_device_without(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, images = torch.Generator().manual_seed(0), torch.rand(3, 1, 32, 32)
    expected = jitter_intensity(images, 0.1, generator)
    monkeypatch.setattr("anomalib_cxr.devices.has_float64", lambda device: False)
    assert on_device(draw(3), torch.device("cpu")).dtype == torch.float32
    assert on_device(torch.arange(3), torch.device("cpu")).dtype == torch.int64
    found = jitter_intensity(images, 0.1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_states_of_version_0_1_give_the_same_distances() -> None:
    """They hold centre and whitening in float64."""
    for distance in DISTANCES:
        search, loaded = LocalSearch(1, distance), LocalSearch(1, distance)
        search.fit(draw(6, 3, 4, 5).float())
        old = {name: values for name, values in search.state_dict().items() if not name.endswith("_parts")}
        old |= {"centre": search.centre, "whitening": search.whitening}
        loaded.load_state_dict(old)
        queries = draw(2, 3, 4, 5, seed=1).float()
        for got, expected in zip(loaded(queries), search(queries), strict=True):
            assert torch.equal(got, expected)
