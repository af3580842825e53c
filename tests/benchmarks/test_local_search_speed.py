"""Speed and memory of the local reference search, on one thread; ratios within one run.

Run with ``pytest -m benchmark -s tests/benchmarks/test_local_search_speed.py``.
"""

import time

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anomalib_cxr.models.components.patch_search.local_search import LocalSearch
from anomalib_cxr.models.components.patch_search.reference_bank import expected_bytes

pytestmark = pytest.mark.benchmark


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seconds(function, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def loop_over_cells(bank, queries):
    """The definition for each query cell, vectorised over its neighbourhood only."""
    dim = bank.shape[-1]
    result = np.empty(queries.shape[:3])
    for b, row, col in np.ndindex(*queries.shape[:3]):
        near = bank[:, max(0, row - 1) : row + 2, max(0, col - 1) : col + 2].reshape(-1, dim)
        result[b, row, col] = np.linalg.norm(near - queries[b, row, col], axis=1).min()
    return result


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation allocated (not: views of the bank), in bytes."""

    def __init__(self, bank):
        super().__init__()
        self.bank = bank.untyped_storage().data_ptr()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.bank:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_against_the_loop_and_the_bare_products():
    """N = 500, 16×16 cells, D = 512, d = 1: the target is 40 times the loop and at most twice the products."""
    n, side, dim = 500, 16, 512
    bank = torch.randn(n, side, side, dim)
    print(f"\nN={n}, {side}x{side}, D={dim}, d=1, one thread; seconds")
    for batch in (64, 8, 1):
        queries = torch.randn(batch, side, side, dim)
        cell_queries, cell_references = torch.randn(batch, dim), torch.randn(9 * n, dim)

        def products(a=cell_queries, b=cell_references.T):
            for _ in range(side * side):
                a @ b

        # One image of the loop stands for the batch: it has no other cost.
        loop = seconds(lambda queries=queries: loop_over_cells(bank.numpy(), queries[:1].numpy()), 2) * batch
        for name in ("euclidean", "cosine", "mahalanobis"):
            search = LocalSearch(1, name)
            search.fit(bank)
            bare = seconds(products)
            own = seconds(lambda search=search, queries=queries: search(queries))
            bare = min(bare, seconds(products))
            print(
                f"{batch:3d} queries {name:12s} loop {loop:7.2f}  products {bare:6.3f}  search {own:6.3f}"
                f"  {loop / own:6.1f} x the loop, {own / bare:4.2f} x the products"
            )


def test_cost_is_linear_in_references():
    """Time and memory at 250 … 2000 images: 8×8 cells, D = 256, d = 1, 8 queries."""
    queries = torch.randn(8, 8, 8, 256)
    print("\n8x8, D=256, d=1, 8 queries, one thread")
    for n in (250, 500, 1000, 2000):
        bank = torch.randn(n, 8, 8, 256)
        for name in ("mahalanobis", "manhattan"):
            search = LocalSearch(1, name)
            fit = seconds(lambda search=search, bank=bank: search.fit(bank), 1)
            with LargestTensor(search.references) as largest:
                search(queries)
            own = seconds(lambda search=search: search(queries))
            print(
                f"N={n:5d} {name:12s} bank {expected_bytes(n, (8, 8), 256) / 2**20:6.1f} MB  fit {fit:5.2f} s  "
                f"search {own * 1e3 / 8:7.1f} ms an image  largest intermediate {largest.bytes / 2**20:5.1f} MB "
                f"(all pairs: {8 * 64 * n * 9 * 4 / 2**20:6.1f} MB)"
            )


def test_doubtful_queries_cost():
    """The worst case, every query doubtful: all a hair's breadth from many references."""
    centre = 10 + 1e-4 * torch.randn(500, 8, 8, 256)
    centre[0] = torch.randn(8, 8, 256)
    queries = 10 + 1e-4 * torch.randn(8, 8, 8, 256)
    print()
    for label, bank, asked in (
        ("spread", torch.randn(500, 8, 8, 256), torch.randn(8, 8, 8, 256)),
        ("crowded", centre, queries),
    ):
        search = LocalSearch(1, "euclidean")
        search.fit(bank)
        print(f"{label:8s} {seconds(lambda search=search, asked=asked: search(asked)) * 1e3 / 8:8.1f} ms an image")
