"""Weights in each layout give what the implementation that they come from gives; others are refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import tiny_encoders  # noqa: F401  # names its models in timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from anomalib_cxr.models import FeatureDensity, MultiResPatchSSL
from anomalib_cxr.models.components.patch_encoder import PatchEncoder
from anomalib_cxr.models.components.weight_layouts import LAYOUTS, published_backbone

RAD_DINO, CHEXZERO = (0.5307, 0.2583), (0.398, 0.327)


def stirred(model: Any) -> Any:
    """A model none of whose numbers are those that it is built with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = 0.2 * torch.randn(value.shape, generator=generator)
                value.copy_(noise.abs() + 0.5 if "running_var" in name else value + noise)
    return model.eval()


def films(side: int) -> Tensor:
    return torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(1))


def encoder(backbone: str, path: Path, side: int, **arguments: Any) -> Any:
    given = {"layers": (-2, -1), "image_size": (side, side)} | arguments
    return PatchEncoder(backbone, weights_path=path, **given).eval()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def as_map(tokens: Tensor) -> Tensor:
    """Patch tokens (B, n², D) as maps (B, D, n, n)."""
    side = round(tokens.shape[1] ** 0.5)
    return torch.stack([tokens[:, i * side : (i + 1) * side] for i in range(side)], dim=1).permute(0, 3, 1, 2)


# ------------------------------------------------------------------ the implementations that the layouts come from


@torch.no_grad()
@pytest.mark.parametrize("saved_by", ["save_pretrained", "torch.save"])
@pytest.mark.parametrize("registers", [0, 4])
def test_transformers_dinov2(saved_by: str, registers: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="RAD-DINO's reference is `transformers`: pip install it.")
    kind, extra = ("Dinov2", {}) if not registers else ("Dinov2WithRegisters", {"num_register_tokens": registers})
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 42, "patch_size": 14}
    config = getattr(transformers, f"{kind}Config")(**small, **extra)
    reference = stirred(getattr(transformers, f"{kind}Model")(config))
    path = tmp_path / "model.safetensors"
    if saved_by == "save_pretrained":
        reference.save_pretrained(tmp_path)
    else:
        path = tmp_path / "model.pth"
        torch.save(reference.state_dict(), path)
    found = encoder("tiny_dinov2_reg4" if registers else "tiny_dinov2", path, 42)
    grey = films(42)
    answer = reference((grey.expand(-1, 3, -1, -1) - RAD_DINO[0]) / RAD_DINO[1], output_hidden_states=True)
    for level, hidden in zip(found.levels(grey), answer.hidden_states[-2:], strict=True):
        close(level, as_map(reference.layernorm(hidden)[:, 1 + registers :]))
    close(found.levels(grey)[1], as_map(answer.last_hidden_state[:, 1 + registers :]))
    close(found(grey), answer.pooler_output)


@torch.no_grad()
def test_openai_clip(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="CheXzero's reference is `open_clip`: pip install it.")
    reference = stirred(
        open_clip.CLIP(
            embed_dim=32,
            vision_cfg={"layers": 2, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 64},
            text_cfg={"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1},
            quick_gelu=True,
        )
    )
    torch.save(reference.state_dict(), tmp_path / "chexzero.pt")
    found = encoder("tiny_clip", tmp_path / "chexzero.pt", 64)
    grey = films(64)
    seen = (grey.expand(-1, 3, -1, -1) - CHEXZERO[0]) / CHEXZERO[1]
    close(found(grey) @ reference.visual.proj, reference.encode_image(seen))
    maps = reference.visual.forward_intermediates(seen, intermediates_only=True, normalize_intermediates=True)
    for level, expected in zip(found.levels(grey), maps["image_intermediates"], strict=True):
        close(level, expected)


@torch.no_grad()
def test_torchxrayvision(tmp_path: Path) -> None:
    reason = "The reference of its DenseNet is `torchxrayvision`: pip install it."
    xrv = pytest.importorskip("torchxrayvision", reason=reason)
    small = {"growth_rate": 8, "block_config": (2, 2), "num_init_features": 16, "in_channels": 1}
    reference = stirred(xrv.models.DenseNet(num_classes=18, op_threshs=torch.rand(18), **small))
    torch.save(reference.state_dict(), tmp_path / "xrv.pt")
    grey = films(224)
    pixels = (255 * grey).round()  # as its own reader has them
    seen = torch.stack([torch.from_numpy(xrv.datasets.normalize(one.numpy(), 255)) for one in pixels])
    expected = reference.features2(seen)
    for channels in (1, 3):
        found = encoder("tiny_densenet", tmp_path / "xrv.pt", 224, in_chans=channels)
        close(found(pixels / 255), expected)
    torch.save(reference, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"whole.pt is damaged or holds more than weights, and nothing of it was run"):
        encoder("tiny_densenet", tmp_path / "whole.pt", 224)


# ---------------------------------------------------------------------------------- layouts without those packages


def dinov2_by_hand(model: Any) -> dict[str, Tensor]:
    """DINOv2's names, written down from its published files."""
    return model.state_dict() | {"mask_token": torch.zeros(1, 64)}


def dinov2_registers_by_hand(model: Any) -> dict[str, Tensor]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    place = torch.randn(1, 1, 64)
    state["register_tokens"] = state.pop("reg_token")
    state["cls_token"] -= place
    state["pos_embed"] = torch.cat([place, state["pos_embed"]], dim=1)
    return state | {"mask_token": torch.zeros(1, 64)}


def dinov2_chunks_by_hand(model: Any) -> dict[str, Tensor]:
    state = {re.sub(r"^blocks\.(\d)", r"blocks.0.\1", name): value for name, value in model.state_dict().items()}
    return state | {"mask_token": torch.zeros(1, 64)}


def transformers_by_hand(model: Any) -> dict[str, Tensor]:
    state = {}
    for name, value in model.state_dict().items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.split(".")[-1]
            for part, rows in zip(("query", "key", "value"), value.split(64), strict=True):
                state[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = rows.clone()
            continue
        for ours, theirs in (
            ("blocks.", "encoder.layer."), ("attn.proj", "attention.output.dense"),
            ("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1"),
            ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        state[f"layernorm{name[4:]}" if name.startswith("norm.") else name] = value
    return state | {"embeddings.mask_token": torch.zeros(1, 64)}


def clip_by_hand(model: Any) -> dict[str, Tensor]:
    words = {
        "patch_embed.proj": "conv1", "pos_embed": "positional_embedding", "norm_pre": "ln_pre",
        "blocks": "transformer.resblocks", "norm1": "ln_1", "norm2": "ln_2", "qkv.": "in_proj_",
        "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "cls_token": "class_embedding",
    }  # fmt: skip
    state = {"visual.proj": torch.zeros(64, 32), "logit_scale": torch.zeros(()), "ln_final.bias": torch.zeros(64)}
    for name, value in model.state_dict().items():
        theirs = name.replace("norm.", "ln_post.") if name.startswith("norm.") else name
        for ours, word in words.items():
            theirs = theirs.replace(ours, word)
        flat = {"class_embedding": value.flatten(), "positional_embedding": value[0]}.get(theirs, value)
        state[f"visual.{theirs}"] = flat.contiguous()
    return {f"module.{name}": value for name, value in state.items()}


def xrv_by_hand(model: Any) -> dict[str, Tensor]:
    counted = {name: value for name, value in model.state_dict().items() if "num_batches_tracked" not in name}
    grey = counted["features.conv0.weight"].sum(dim=1, keepdim=True)
    return counted | {"features.conv0.weight": grey, "classifier.bias": torch.rand(18)}


def timm_by_hand(model: Any) -> dict[str, Tensor]:
    return model.state_dict() | {"classifier.weight": torch.rand(5, 256), "classifier.bias": torch.rand(5)}


IMAGENET = (sum((0.485, 0.456, 0.406)) / 3, sum((0.229, 0.224, 0.225)) / 3)
#: Model, its side, what a file of it holds, and what the weights take grey values to have: mean, deviation, range.
FILES: dict[str, tuple[str, int, Callable[[Any], dict[str, Tensor]], float, float, tuple[int, int]]] = {
    "dinov2": ("tiny_dinov2", 42, dinov2_by_hand, *RAD_DINO, (0, 1)),
    "registers": ("tiny_dinov2_reg4", 42, dinov2_registers_by_hand, *RAD_DINO, (0, 1)),
    "chunks": ("tiny_dinov2", 42, dinov2_chunks_by_hand, *RAD_DINO, (0, 1)),
    "transformers": ("tiny_dinov2", 42, transformers_by_hand, *RAD_DINO, (0, 1)),
    "clip": ("tiny_clip", 64, clip_by_hand, *CHEXZERO, (0, 1)),
    "xrv": ("tiny_densenet", 64, xrv_by_hand, 0, 1, (-1024, 1024)),
    "timm": ("test_efficientnet", 64, timm_by_hand, *IMAGENET, (0, 1)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", FILES)
def test_a_layout_gives_the_numbers_of_its_model_with_its_own_grey_values(name: str, tmp_path: Path) -> None:
    backbone, side, file, mean, std, (black, white) = FILES[name]
    model = stirred(timm.create_model(backbone, num_classes=0))
    save_file({key: value.contiguous() for key, value in file(model).items()}, tmp_path / "model.safetensors")
    grey = films(side)
    for given in ({}, {"mean": 40.0, "std": 3.0, "input_range": (0, 255)}):
        found = encoder(backbone, tmp_path / "model.safetensors", side, **given)
        seen = (255 * grey - 40) / 3 if given else (black + grey * (white - black) - mean) / std
        close(found(grey), model(seen.expand(-1, 3, -1, -1)))
        if hasattr(model, "num_prefix_tokens"):
            tokens = model.forward_features(seen.expand(-1, 3, -1, -1))
            assert model.num_prefix_tokens == (5 if name == "registers" else 1)
            close(found.levels(grey)[-1], as_map(tokens[:, model.num_prefix_tokens :]))


@torch.no_grad()
def test_codes_of_places_keep_the_files_grid_until_they_are_brought_to_the_images(tmp_path: Path) -> None:
    model = stirred(timm.create_model("tiny_dinov2", num_classes=0, img_size=70))
    save_file(dinov2_by_hand(model), tmp_path / "model.safetensors")
    grey = films(70)
    found = encoder("tiny_dinov2", tmp_path / "model.safetensors", 70)
    close(found(grey), model((grey.expand(-1, 3, -1, -1) - RAD_DINO[0]) / RAD_DINO[1]))


def test_each_published_file_has_its_backbone_and_detectors_take_it(tmp_path: Path, monkeypatch) -> None:
    expected = {
        "dinov2": "vit_base_patch14_dinov2", "transformers": "vit_base_patch14_dinov2",
        "clip": "vit_base_patch32_clip_quickgelu_224", "xrv": "densenet121", "timm": None,
    }  # fmt: skip
    for name, backbone in expected.items():
        model = timm.create_model(FILES[name][0], num_classes=0)
        file = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in FILES[name][2](model).items()}, file)
        assert published_backbone(file) == backbone
    built = []
    monkeypatch.setattr(timm, "create_model", lambda name, **_: built.append(name) or 1 / 0)
    for detector in (FeatureDensity, MultiResPatchSSL):
        with pytest.raises(ZeroDivisionError):
            detector(weights_path=str(tmp_path / "xrv.safetensors"))
        with pytest.raises(ZeroDivisionError):
            detector(weights_path=str(tmp_path / "timm.safetensors"), preset="laptop")
    assert built == ["densenet121", "tf_efficientnet_lite0", "densenet121", "resnet18"]
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)


@torch.no_grad()
@pytest.mark.parametrize("detector", ["FeatureDensity", "MultiResPatchSSL"])
def test_a_checkpoint_keeps_what_the_files_said(detector: str, tmp_path: Path) -> None:
    """When it is loaded, files may be gone, and timm knows nothing of their grey values."""
    files = []
    for name in ("clip", "xrv"):
        state = FILES[name][2](stirred(timm.create_model(FILES[name][0], num_classes=0)))
        files.append(str(tmp_path / f"{name}.safetensors"))
        save_file({key: value.contiguous() for key, value in state.items()}, files[-1])
    backbones = [FILES["clip"][0], FILES["xrv"][0]]
    if detector == "FeatureDensity":
        model: Any = FeatureDensity(weights_path=files[0], backbone=backbones[0], image_size=64)
    else:
        both = {"weights_path": files, "backbone": backbones, "patch_sizes": [32, 32]}
        model = MultiResPatchSSL(preset="best", image_size=64, pre_trained=False, **both)
    model.eval().model.fit(model.model.features(torch.rand(6, 1, 64, 64)))
    checkpoint = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    checkpoint["pytorch-lightning_version"] = "2.6.0"
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "model.ckpt")
    for file in files:
        Path(file).unlink()
    loaded = type(model).load_from_checkpoint(tmp_path / "model.ckpt").eval()
    assert torch.equal(loaded.model(films(64)).anomaly_map, model.model(films(64)).anomaly_map)


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model = timm.create_model("tiny_dinov2", num_classes=0)
    whole = dinov2_by_hand(model)
    cut = {name: value for name, value in whole.items() if not name.startswith("blocks.1.")}
    more = whole | {"blocks.2.norm1.weight": torch.zeros(64)}
    wide = whole | {"norm.bias": torch.zeros(32)}
    for state, message in (
        (
            cut,
            r"are not those of backbone=tiny_dinov2: they lack blocks.1.norm1.weight and 13 more; give",
        ),
        (more, r"they have, unlike the model, blocks.2.norm1.weight; .* of, such as vit_base_patch14_dinov2\.$"),
        (wide, r"norm.bias has the shape \(32,\) and not \(64,\)"),
        ({"stem.weight": torch.zeros(1)}, r"which begin with stem.weight, are in no layout known here \(DINOv2's own"),
    ):
        save_file(state, tmp_path / "odd.safetensors")
        with pytest.raises(ValueError, match=message):
            encoder("tiny_dinov2", tmp_path / "odd.safetensors", 42)
    torch.save({"epoch": 3}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd.pth holds no weights by name"):
        encoder("tiny_dinov2", tmp_path / "odd.pth", 42)
    (tmp_path / "odd.pth").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"odd.pth is damaged or holds more than weights"):
        encoder("tiny_dinov2", tmp_path / "odd.pth", 42)


def test_a_wrapped_file_is_that_file(tmp_path: Path) -> None:
    model = stirred(timm.create_model("test_efficientnet", num_classes=0))
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pth")
    found = encoder("test_efficientnet", tmp_path / "wrapped.pth", 64).model.state_dict()
    name = "blocks.1.0.conv_exp.weight"
    assert torch.equal(found[name], model.state_dict()[name])
