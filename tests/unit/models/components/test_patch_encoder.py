"""What a transformer shows of a film, token by token, and what other encoders cannot."""

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from anomalib_cxr.models import FeatureDensity, MultiResPatchSSL
from anomalib_cxr.models.components.patch_encoder import PatchEncoder

SIDE, PATCH, GRID, WIDTH = 48, 16, 3, 64
LAYERS = (1, -1)


def normed(token: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    return (token - token.mean()) / (token.var(correction=0) + norm.eps).sqrt() * norm.weight + norm.bias


def tokens_by_hand(model: torch.nn.Module, film: Tensor, places: Tensor) -> list[Tensor]:
    """A film (H, W) through a transformer, one token after the other; after each block, all tokens (n, D), normed."""
    kernel = model.patch_embed.proj.weight.sum(dim=1)  # all colours are the one grey
    tokens = [model.cls_token[0, 0] + places[0]]
    for row in range(GRID):
        for col in range(GRID):
            patch = film[row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH]
            token = torch.stack([(patch * each).sum() for each in kernel]) + model.patch_embed.proj.bias
            tokens.append(token + places[1 + row * GRID + col])
    seen = []
    for block in model.blocks:
        heads, size = block.attn.num_heads, WIDTH // block.attn.num_heads
        parts = [block.attn.qkv.weight @ normed(token, block.norm1) + block.attn.qkv.bias for token in tokens]
        moved = []
        for asked, token in zip(parts, tokens, strict=True):
            answers = []
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                fits = torch.stack(
                    [asked[:WIDTH][own] @ part[WIDTH : 2 * WIDTH][own] / math.sqrt(size) for part in parts]
                )
                shares = fits.exp() / fits.exp().sum()
                answers.append(sum(share * part[2 * WIDTH :][own] for share, part in zip(shares, parts, strict=True)))
            moved.append(token + block.attn.proj.weight @ torch.cat(answers) + block.attn.proj.bias)
        tokens = []
        for token in moved:
            inner = block.mlp.fc1.weight @ normed(token, block.norm2) + block.mlp.fc1.bias
            inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
            tokens.append(token + block.mlp.fc2.weight @ inner + block.mlp.fc2.bias)
        seen.append(torch.stack([normed(token, model.norm) for token in tokens]))
    return seen


def places_by_pillow(places: Tensor) -> Tensor:
    """Codes of places (1, 1 + n², D) at GRID², by another library's bicubic interpolation; the class token's stays."""
    old = math.isqrt(places.shape[1] - 1)
    maps = places[0, 1:].T.reshape(-1, old, old).numpy()
    small = [np.asarray(Image.fromarray(one).resize((GRID, GRID), Image.Resampling.BICUBIC)) for one in maps]
    return torch.cat([places[0, :1], torch.from_numpy(np.stack(small)).flatten(1).T])


@torch.no_grad()
@pytest.mark.parametrize("detector", ["MultiResPatchSSL", "FeatureDensity"])
def test_cells_of_a_transformer_are_its_patch_tokens(detector: str) -> None:
    torch.manual_seed(0)
    native = timm.create_model("test_vit", num_classes=0)
    with torch.no_grad():
        for value in native.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    places = places_by_pillow(native.pos_embed)
    arguments = {"backbone": "test_vit", "image_size": SIDE, "layers": LAYERS, "pre_trained": False}
    if detector == "MultiResPatchSSL":
        model = MultiResPatchSSL(preset="best", patch_sizes=[PATCH], **arguments).model.eval()
        encoder = model.encoder(0)
    else:
        model = FeatureDensity(cell_size=PATCH, unit_length=False, **arguments).model.eval()
        encoder = model.encoder
    assert encoder.model.pos_embed.shape == (1, 1 + GRID**2, WIDTH)
    state = native.state_dict() | {"pos_embed": places[None]}
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    encoder.model.load_state_dict(state)
    film = torch.rand(1, 1, SIDE, SIDE)
    seen = tokens_by_hand(native, 2 * film[0, 0] - 1, places)
    expected = torch.cat([F.normalize(seen[layer][1:], dim=-1) for layer in LAYERS], dim=-1)
    found = model.features(film)
    cells = found[0] if isinstance(found, list) else found
    torch.testing.assert_close(cells.flatten(0, 2), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_codes_of_places_are_brought_to_the_images() -> None:
    torch.manual_seed(0)
    encoder = PatchEncoder("test_vit", image_size=(SIDE, SIDE))
    torch.manual_seed(0)
    native = timm.create_model("test_vit", num_classes=0, in_chans=1)
    expected = places_by_pillow(native.pos_embed)
    torch.testing.assert_close(encoder.model.pos_embed[0], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_what_weights_were_trained_with_is_in_the_checkpoint() -> None:
    trained = PatchEncoder("test_vit", mean=100.0, std=50.0, input_range=(0, 200))
    assert (trained.mean.item(), trained.std.item()) == (0.5, 0.25)
    fresh = PatchEncoder("test_vit")
    fresh.load_state_dict(trained.state_dict())
    grey = torch.rand(1, 1, 160, 160)
    assert torch.equal(fresh.eval()(grey), trained.eval()(grey))
    earlier = {name: value for name, value in trained.state_dict().items() if name not in ("mean", "std")}
    fresh = PatchEncoder("test_vit", mean=0.3, std=0.2)
    fresh.load_state_dict(earlier)
    assert fresh.mean.item() == pytest.approx(0.3)


def test_sizes_and_models_that_cannot_be_are_refused() -> None:
    for backbone, arguments, message in (
        (
            "test_vit",
            {"image_size": (48, 40)},
            "of 48x40 pixels are not made of .* take an image_size of 48x32 or 48x48",
        ),
        (
            "cait_xxs24_224",
            {"image_size": (64, 64)},
            "timm cannot bring cait_xxs24_224 to .* 64x64 .*: take 224x224",
        ),
        ("test_vit", {"input_range": (1, 0)}, "`input_range` must be what black and white are"),
        ("test_vit", {"layers": (7,)}, "`layers` must name some of the 6 levels"),
    ):
        with pytest.raises(ValueError, match=message):
            PatchEncoder(backbone, **arguments)
