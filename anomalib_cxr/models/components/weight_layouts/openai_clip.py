"""The vision transformer of OpenAI's CLIP, which CheXzero goes on training."""

from torch import Tensor

from anomalib_cxr.models.components.weight_layouts.layout import State, WeightLayout, renamed

_WORDS = (
    ("conv1.", "patch_embed.proj."),
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("transformer.resblocks.", "blocks."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)


def _to_timm(state: State) -> dict[str, Tensor]:
    """The image tower without its projection to the space it shares with texts."""
    tower = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    found = {renamed(name, _WORDS): value for name, value in tower.items() if name != "proj"}
    found["cls_token"] = found["cls_token"].reshape(1, 1, -1)
    found["pos_embed"] = found["pos_embed"][None]
    return found


#: CheXzero (Tiu et al., Nat. Biomed. Eng. 2022) takes grey values of 0 to 255 less 101.48761, over 83.43944. OpenAI's
#: own weights, which have the same names and another mean, are timm's by name.
OPENAI_CLIP = WeightLayout(
    name="OpenAI's CLIP (CheXzero)",
    recognise=lambda state: {"visual.class_embedding", "visual.conv1.weight"} <= state.keys(),
    to_timm=_to_timm,
    backbone="vit_base_patch32_clip_quickgelu_224",
    mean=0.398,
    std=0.327,
)
