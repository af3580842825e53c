"""DINOv2's vision transformers, in the two layouts they come in; both are those of RAD-DINO."""

import re
from typing import Any

import torch
from torch import Tensor

from anomalib_cxr.models.components.weight_layouts.layout import State, WeightLayout, renamed

#: RAD-DINO (Pérez-García et al., Nat. Mach. Intell. 2025) wants 518² pixels, and its own mean and deviation, as its
#: ``preprocessor_config.json`` says. DINOv2's own weights, which timm names, were trained with ImageNet's.
_RAD_DINO: dict[str, Any] = {"backbone": "vit_base_patch14_dinov2", "mean": 0.5307, "std": 0.2583}


def _from_own(state: State) -> dict[str, Tensor]:
    """Timm's names of weights as facebookresearch/dinov2 names them."""
    found = {
        # In parts of the training code, blocks lie in chunks: blocks.0.7 is block 7.
        re.sub(r"^blocks\.\d+\.(?=\d)", "blocks.", renamed(name, [(".w12.", ".fc1."), (".w3.", ".fc2.")])): value
        for name, value in state.items()
        if name != "mask_token"
    }
    if "register_tokens" in found:
        # timm adds places to patches alone, so the class token has its own added here.
        places = found["pos_embed"]
        found["reg_token"] = found.pop("register_tokens")
        found["cls_token"] = found["cls_token"] + places[:, :1]
        found["pos_embed"] = places[:, 1:]
    return found


#: What ``transformers`` calls the parts: in its files, and from its version 5 on in memory.
_WORDS = (
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    ("layernorm.", "norm."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.o_proj.", ".attn.proj."),
    (".attention.attention.query.", ".attn.q."),
    (".attention.attention.key.", ".attn.k."),
    (".attention.attention.value.", ".attn.v."),
    (".attention.q_proj.", ".attn.q."),
    (".attention.k_proj.", ".attn.k."),
    (".attention.v_proj.", ".attn.v."),
    (".mlp.weights_in.", ".mlp.w12."),
    (".mlp.weights_out.", ".mlp.w3."),
)


def _from_transformers(state: State) -> dict[str, Tensor]:
    """Timm's names of weights of ``Dinov2Model``; queries, keys and values are one matrix in timm."""
    found = {renamed(name, _WORDS): value for name, value in state.items()}
    for name in [name for name in found if ".attn.q." in name]:
        parts = [found.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        found[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return _from_own(found)


DINOV2 = WeightLayout(
    name="DINOv2's own (RAD-DINO's backbone_compatible.safetensors)",
    recognise=lambda state: {"mask_token", "cls_token", "patch_embed.proj.weight"} <= state.keys(),
    to_timm=_from_own,
    **_RAD_DINO,
)

TRANSFORMERS_DINOV2 = WeightLayout(
    name="transformers' Dinov2Model (RAD-DINO's model.safetensors)",
    recognise=lambda state: {"embeddings.cls_token", "encoder.layer.0.layer_scale1.lambda1"} <= state.keys(),
    to_timm=_from_transformers,
    **_RAD_DINO,
)
