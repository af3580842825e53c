"""The local density against a plain loop over its definition."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anomalib_cxr.models.anat_paste.local_density import LocalDensity
from anomalib_cxr.models.anat_paste.torch_model import AnatPasteModel


def _distances(queries: np.ndarray, references: np.ndarray, own: bool) -> np.ndarray:
    """1 − cos to the nearest reference within one cell; ``own`` leaves out the reference of the query's number."""
    n, rows, cols, _ = queries.shape
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (queries.astype(float), references.astype(float))]
    found = np.full((n, rows, cols), np.inf)
    for i, row, col in np.ndindex(n, rows, cols):
        for j in range(len(references)):
            if own and i == j:
                continue
            for r in range(max(0, row - 1), min(rows, row + 2)):
                for c in range(max(0, col - 1), min(cols, col + 2)):
                    found[i, row, col] = min(found[i, row, col], 1 - unit[0][i, row, col] @ unit[1][j, r, c])
    return found


def test_scores_and_maps_against_a_loop() -> None:
    torch.manual_seed(0)
    references, queries = torch.rand(7, 4, 5, 6).half().float(), torch.rand(3, 4, 5, 6)
    density = LocalDensity()
    density.fit(references)
    scores, maps = density(queries)
    normal = _distances(references.numpy(), references.numpy(), own=True).mean(0)
    expected = _distances(queries.numpy(), references.numpy(), own=False) - normal
    np.testing.assert_allclose(maps[:, 0].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(scores.numpy(), expected.mean((1, 2)), atol=1e-6)


def test_the_normal_map_is_of_evenly_spread_images() -> None:
    references = torch.rand(7, 3, 3, 6).half().float()
    density = LocalDensity(map_images=3)  # every third
    density.fit(references)
    expected = _distances(references.numpy(), references.numpy(), own=True)[[0, 3, 6]].mean(0)
    np.testing.assert_allclose(density.normal_map.mean[0].numpy(), expected, atol=1e-6)


def test_the_model_scores_cells_of_the_last_map_but_one() -> None:
    torch.manual_seed(0)
    model = AnatPasteModel("resnet10t", density="local").eval()
    images = torch.rand(6, 3, 64, 96)
    levels = []
    hook = model.backbone.layer3.register_forward_hook(lambda *found: levels.append(found[2]))
    with torch.no_grad():
        model.fit(*model.references(images[:4]))
        out = model(images[4:])
    hook.remove()
    assert levels[0].shape[-2:] == (4, 6)
    bank, query = (F.normalize(level.movedim(1, -1), dim=-1).numpy() for level in levels)
    bank = bank.astype(np.float16)
    expected = _distances(query, bank, own=False) - model.density.normal_map.mean[0].numpy()
    np.testing.assert_allclose(out.pred_score.numpy(), expected.mean((1, 2)), atol=2e-4)
    assert out.anomaly_map.shape == (2, 1, 64, 96)
    # The highest cell is where the enlarged map is highest.
    for i in range(2):
        row, col = divmod(int(out.anomaly_map[i, 0].argmax()), 96)
        assert (row // 16, col // 16) == divmod(int(expected[i].argmax()), 6)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two normal training images, got 1"):
        LocalDensity().fit(torch.rand(1, 2, 2, 3))
    with pytest.raises(ValueError, match="fine_map averages Grad-CAMs"):
        AnatPasteModel(fine_map=True, density="local")
    with pytest.raises(ValueError, match="density must be one of 'kernel', 'local', not 'nearest'"):
        AnatPasteModel(density="nearest")
    with pytest.raises(ValueError, match="hold NaN or infinite"):
        LocalDensity().fit(torch.full((3, 2, 2, 3), float("nan")))
    with pytest.raises((ValueError, RuntimeError), match="bank is empty"):
        LocalDensity()(torch.rand(1, 2, 2, 3))
