"""Cutting and joining against slices."""

import torch

from anomalib_cxr.models.components.windows import cut_windows, join_windows

MAPS = torch.randn(2, 3, 6, 12, generator=torch.Generator().manual_seed(0))


def test_windows_are_slices_film_by_film_and_row_by_row() -> None:
    slices = [film[:, top : top + 2, left : left + 4] for film in MAPS for top in (0, 2, 4) for left in (0, 4, 8)]
    assert torch.equal(cut_windows(MAPS, 3), torch.stack(slices))


def test_joined_windows_are_what_was_cut() -> None:
    for parts in (1, 2, 3):
        assert torch.equal(join_windows(cut_windows(MAPS, parts), parts), MAPS)
