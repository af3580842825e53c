"""Reference bank: what is kept, how short, and under which image number."""

import io
import logging
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA, TruncatedSVD

from anomalib_cxr.models.components.patch_search.local_search import Distance, LocalSearch
from anomalib_cxr.models.components.patch_search.reference_bank import ReferenceBank, expected_bytes, farthest_first


def test_without_options_it_is_the_search():
    features, queries = torch.randn(6, 3, 3, 4), torch.randn(2, 3, 3, 4)
    bank, search = ReferenceBank(1, "cosine"), LocalSearch(1, "cosine")
    bank.fit(features)
    search.fit(features)
    for got, expected in zip(bank(queries), search(queries), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_pca_keeps_the_distances_of_scikit_learns(distance):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 2, 2, 8, generator=generator, dtype=torch.float64) * torch.linspace(3, 0.1, 8) + 1
    queries = torch.randn(3, 2, 2, 8, generator=generator, dtype=torch.float64)
    bank = ReferenceBank("all", distance, "float64", feature_dim=3)
    bank.fit(features)
    flat = features.reshape(-1, 8).numpy()
    if distance == "cosine":
        reduced = TruncatedSVD(3, algorithm="arpack", random_state=0).fit(flat)
        short, asked = reduced.transform(flat), reduced.transform(queries.reshape(-1, 8).numpy())
        similarity = (asked / np.linalg.norm(asked, axis=1)[:, None]) @ (
            short / np.linalg.norm(short, axis=1)[:, None]
        ).T
        expected = (1 - similarity).min(1)
    else:
        reduced = PCA(3).fit(flat)
        short, asked = reduced.transform(flat), reduced.transform(queries.reshape(-1, 8).numpy())
        expected = np.linalg.norm(asked[:, None] - short[None], axis=-1).min(1)
    np.testing.assert_allclose(bank(queries)[0].flatten().numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("selection", ["random", "k_center"])
def test_kept_references_are_named_after_their_image(selection, caplog):
    features = torch.randn(12, 2, 3, 4)
    number = torch.arange(12) * 10 + 5
    bank = ReferenceBank(0, "euclidean", max_references=4, selection=selection, seed=3)
    with caplog.at_level(logging.INFO):
        bank.fit(features, number)
    assert "4 of 12" in caplog.text
    kept = bank.search.image_index
    assert kept.shape == (2, 3, 4)
    for row, col in np.ndindex(2, 3):
        images = kept[row, col].tolist()
        assert images == sorted(set(images))
        for position, image in enumerate(images):
            assert torch.equal(bank.search.references[row, col, position], features[(image - 5) // 10, row, col])
    # Each cell chooses its own.
    assert len({tuple(kept[row, col].tolist()) for row, col in np.ndindex(2, 3)}) > 1
    # And a query that is a kept reference finds it, under the image's number.
    distance, index = bank(features)
    found = (distance == 0).nonzero()
    assert len(found) == 24
    for image, row, col in found.tolist():
        assert index[image, row, col].tolist() == [image * 10 + 5, row, col]


def test_choice_is_a_function_of_the_seed():
    features = torch.randn(20, 2, 2, 4)
    kept = []
    for seed in (0, 0, 1):
        bank = ReferenceBank(max_references=5, distance="euclidean", seed=seed)
        torch.manual_seed(len(kept))
        bank.fit(features)
        kept.append(bank.search.image_index)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_farthest_first_equals_a_plain_loop():
    points = torch.randn(3, 15, 4, dtype=torch.float64)
    first = torch.tensor([0, 7, 14])
    for chosen, cloud, start in zip(farthest_first(points, 6, first), points.numpy(), first.tolist(), strict=True):
        expected = [start]
        for _ in range(5):
            gaps = [min(np.linalg.norm(cloud[i] - cloud[j]) for j in expected) for i in range(15)]
            expected.append(int(np.argmax(gaps)))
        assert chosen.tolist() == expected


def test_k_centre_covers_better_than_chance():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 1, 1, 3, generator=generator).pow(3)
    radius = {}
    for selection in ("random", "k_center"):
        bank = ReferenceBank(0, "euclidean", max_references=10, selection=selection)
        bank.fit(features)
        radius[selection] = bank(features)[0].max()
    assert radius["k_center"] < 0.7 * radius["random"]


@pytest.mark.parametrize("distance", ["mahalanobis", "whitened_cosine", "cosine", "euclidean"])
def test_k_centre_spreads_references_by_the_distance_that_is_searched(distance):
    """By a plain loop in the space of the distance; raw features, of very unequal scales, would choose others."""
    scale = torch.tensor([30.0, 1.0, 0.1], dtype=torch.float64)
    raw = torch.randn(40, 1, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * scale + scale
    bank = ReferenceBank(0, distance, "float64", max_references=6, selection="k_center", seed=5)
    bank.fit(raw)
    flat = raw.reshape(-1, 3).numpy()
    space = raw.numpy()
    if distance in ("mahalanobis", "whitened_cosine"):
        estimate = LedoitWolf().fit(flat)
        space = (space - estimate.location_) @ np.linalg.cholesky(np.linalg.inv(estimate.covariance_))
    if distance in ("cosine", "whitened_cosine"):
        space = space / np.linalg.norm(space, axis=-1, keepdims=True)
    first = torch.randint(40, (1, 2), generator=torch.Generator().manual_seed(5))[0].tolist()
    chosen_raw = []
    for cell in range(2):
        for points, expected in ((space[:, 0, cell], True), (raw[:, 0, cell].numpy(), False)):
            chosen = [first[cell]]
            for _ in range(5):
                gaps = [min(np.linalg.norm(points[i] - points[j]) for j in chosen) for i in range(40)]
                chosen.append(int(np.argmax(gaps)))
            if expected:
                assert bank.search.image_index[0, cell].tolist() == sorted(chosen)
            else:
                chosen_raw.append(sorted(chosen))
    assert (bank.search.image_index[0].tolist() == chosen_raw) == (distance == "euclidean")


def test_expected_bytes_are_the_bytes_of_the_buffers():
    for dtype in ("float32", "float16", "float64"):
        bank = ReferenceBank(1, "euclidean", dtype, feature_dim=6, max_references=7)
        bank.fit(torch.randn(9, 3, 4, 8))
        held = bank.search.references.nbytes + bank.search.image_index.nbytes + bank.search.half_norms.nbytes
        assert expected_bytes(7, (3, 4), 6, dtype) == held


@pytest.mark.parametrize("distance", ["cosine", "mahalanobis", "whitened_cosine"])
def test_state_loads_into_an_empty_bank_of_other_sizes(distance):
    options = {"distance": distance, "feature_dim": 3, "max_references": 4, "bank_dtype": "float16"}
    bank, empty, other = (ReferenceBank(**options) for _ in range(3))
    bank.fit(torch.randn(6, 3, 2, 5))
    other.fit(torch.randn(9, 5, 4, 8))
    queries = torch.randn(2, 3, 2, 5)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    for target in (empty, other):
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        for got, expected in zip(target(queries), bank(queries), strict=True):
            assert torch.equal(got, expected)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="bank is empty: no features of normal"):
        ReferenceBank().fit(torch.empty(0, 2, 2, 3))
    with pytest.raises(ValueError, match="bank is empty: fit it"):
        ReferenceBank()(torch.rand(1, 2, 2, 3))
    with pytest.raises(ValueError, match="have only 3"):
        ReferenceBank(feature_dim=4).fit(torch.rand(5, 2, 2, 3))
    with pytest.raises(ValueError, match="bank_dtype must be one of 'float32', 'float16'"):
        ReferenceBank(bank_dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'random', 'k_center'"):
        ReferenceBank(selection="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        ReferenceBank(max_references=0)


@pytest.mark.parametrize("distance", get_args(Distance))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_images_that_join_later_are_found_as_if_they_had_been_there(distance: Distance, dtype: str) -> None:
    """With the metric of the first references: a plain loop over all of them, whitened and centred by those."""
    torch.manual_seed(0)
    first, later, queries = torch.randn(9, 3, 4, 6), torch.randn(4, 3, 4, 6) + 0.5, torch.randn(5, 3, 4, 6)
    bank = ReferenceBank(patch_distance=1, distance=distance, bank_dtype=dtype)  # type: ignore[arg-type]
    bank.fit(first)
    metric = bank.search.centre.clone(), bank.search.whitening.clone()
    alone = bank(queries)[0]
    bank.extend(later)
    assert torch.equal(bank.search.centre, metric[0])
    assert torch.equal(bank.search.whitening, metric[1])
    found, index = bank(queries)

    whole = ReferenceBank(patch_distance=1, distance=distance, bank_dtype=dtype)  # type: ignore[arg-type]
    whole.search.centre_parts, whole.search.whitening_parts = bank.search.centre_parts, bank.search.whitening_parts
    joined = torch.cat([first, later]).permute(1, 2, 0, 3)
    whole.search.set_references(joined, torch.arange(13).expand(3, 4, -1))
    assert torch.equal(found, whole(queries)[0])
    assert torch.equal(index, whole(queries)[1])
    assert (found <= alone).all()
    assert ((index[..., 0] >= 9) == (found < alone)).all(), "the later ones are numbered on, and found where nearer"
    assert set(index[..., 0].unique().tolist()) <= set(range(13))


def test_what_does_not_fit_a_bank_does_not_join_it() -> None:
    bank = ReferenceBank(distance="euclidean")
    with pytest.raises(ValueError, match="cannot join a bank of 0x0 cells"):
        bank.extend(torch.rand(2, 3, 3, 4))
    bank.fit(torch.rand(5, 3, 3, 4))
    for shape in ((2, 3, 4, 4), (2, 3, 3, 5), (3, 3, 4)):
        with pytest.raises(ValueError, match="cannot join a bank of 3x3 cells and length 4"):
            bank.extend(torch.rand(*shape))
