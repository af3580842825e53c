"""The in-painting block against loops over places, heads and neighbours."""

import math

import torch
from torch import Tensor

from anomalib_cxr.models.squid.inpainting import InPainting, neighbours


def block(grid: int = 2, shortcut: float = 0.5) -> InPainting:
    torch.manual_seed(0)
    made = InPainting(channels=32, side=2, grid=grid, slots=9, top=5, shortcut=shortcut)
    for norm in (made.attention_norm, made.feed_forward_norm, made.restore[1]):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    torch.nn.init.normal_(made.attention.in_proj_bias)
    return made


def around(cells: Tensor, place: int, grid: int) -> list[Tensor]:
    """The neighbours of a place, zeros where there is none."""
    row, col = divmod(place, grid)
    found = []
    for r in (row - 1, row, row + 1):
        for c in (col - 1, col, col + 1):
            if (r, c) != (row, col):
                inside = 0 <= r < grid and 0 <= c < grid
                found.append(cells[r * grid + c] if inside else torch.zeros_like(cells[0]))
    return found


def test_neighbours_of_each_place_are_those_of_the_plain_loop() -> None:
    for grid in (2, 3):
        cells = torch.randn(2, grid**2, 5)
        found = neighbours(cells, grid)
        for film in range(2):
            for place in range(grid**2):
                assert torch.equal(found[film, place], torch.stack(around(cells[film], place, grid)))
    corners = neighbours(torch.ones(1, 4, 1), 2)
    assert (corners == 0).sum(dim=(2, 3)).tolist() == [[5, 5, 5, 5]]


def norm(row: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    deviation = (row - row.mean()).square().mean().add(1e-5).sqrt()
    return ((row - row.mean()) / deviation * layer.weight + layer.bias).clamp(min=0)


@torch.no_grad()
def test_windows_attend_to_their_neighbours_memories_by_their_own_features() -> None:
    inpainting = block().double()
    features, remembered = torch.randn(2, 2, 4, 32, dtype=torch.float64)
    found = inpainting.made(features, remembered).reshape(2, 4, 32)
    ask, key, value = inpainting.attention.in_proj_weight.chunk(3)
    ask_bias, key_bias, value_bias = inpainting.attention.in_proj_bias.chunk(3)
    first, _, second = inpainting.feed_forward
    for film in range(2):
        for place in range(4):
            cells = around(remembered[film], place, 2)
            heads = []
            for head in range(8):
                part = slice(4 * head, 4 * head + 4)
                asked = (ask @ features[film, place] + ask_bias)[part]
                likeness = [asked @ (key @ cell + key_bias)[part] / math.sqrt(4) for cell in cells]
                shares = torch.stack(likeness).exp()
                values = torch.stack([(value @ cell + value_bias)[part] for cell in cells])
                heads.append(shares @ values / shares.sum())
            attended = inpainting.attention.out_proj(torch.cat(heads))
            fitted = norm(attended + remembered[film, place], inpainting.attention_norm)
            hidden = (first.weight @ fitted + first.bias).clamp(min=0)
            expected = norm(fitted + second.weight @ hidden + second.bias, inpainting.feed_forward_norm)
            torch.testing.assert_close(found[film, place], expected)


@torch.no_grad()
def test_what_comes_out_knows_its_place_and_comes_from_its_queue() -> None:
    inpainting, bottom = block().eval(), torch.randn(8, 32, 2, 2)
    found, features = inpainting(bottom)
    reduced = torch.einsum("oc,nchw->nohw", inpainting.reduce.weight[:, :, 0, 0], bottom)
    reduced = reduced + inpainting.reduce.bias[:, None, None]
    torch.testing.assert_close(features, reduced.reshape(2, 4, 32))
    made = inpainting.made(features, inpainting.queue(features)).reshape(8, 8, 2, 2)
    code = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]] * 2).float()
    known = torch.cat([made, code[:, :, None, None].expand(-1, -1, 2, 2)], dim=1)
    hidden = torch.einsum("oc,nchw->nohw", inpainting.restore[0].weight[:, :, 0, 0], known)
    scale, shift = (value[:, None, None] for value in (inpainting.restore[1].weight, inpainting.restore[1].bias))
    torch.testing.assert_close(found, (hidden / (1 + 1e-5) ** 0.5 * scale + shift).clamp(min=0))


@torch.no_grad()
def test_places_pass_by_in_training_and_never_without_a_generator() -> None:
    inpainting, bottom = block().eval(), torch.randn(40, 32, 2, 2)
    made, _ = inpainting(bottom)
    assert not (made == bottom).any()
    found, _ = inpainting(bottom, torch.Generator().manual_seed(0))
    passed = (found == bottom).all(dim=1)
    assert 0.35 < passed.float().mean() < 0.65
    assert torch.equal(found, torch.where(passed[:, None], bottom, made))


@torch.no_grad()
def test_the_exported_block_takes_any_number_of_films() -> None:
    inpainting, bottom = block().eval(), torch.randn(12, 32, 2, 2)
    films = torch.export.Dim("films", min=2, max=64)
    exported = torch.export.export(inpainting, (bottom[:8],), dynamic_shapes={"bottom": {0: 4 * films}})
    for count in (8, 12):
        torch.testing.assert_close(exported.module()(bottom[:count])[0], inpainting(bottom[:count])[0])
