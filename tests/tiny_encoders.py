"""timm models of published kinds, but tiny: named in timm by importing this."""

from typing import Any

from timm.models import densenet, register_model, vision_transformer
from torch import nn

TWO_BLOCKS = {"depth": 2, "embed_dim": 64, "num_heads": 1}


@register_model
def tiny_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Patches of 16 pixels, a class token and four registers."""
    return vision_transformer.vit_tiny_patch16_224(
        pretrained, **TWO_BLOCKS | {"img_size": 64, "reg_tokens": 4} | kwargs
    )


@register_model
def tiny_dinov2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return vision_transformer.vit_base_patch14_dinov2(pretrained, **TWO_BLOCKS | {"img_size": 42} | kwargs)


@register_model
def tiny_dinov2_reg4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return vision_transformer.vit_base_patch14_reg4_dinov2(pretrained, **TWO_BLOCKS | {"img_size": 42} | kwargs)


@register_model
def tiny_clip(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    small = TWO_BLOCKS | {"img_size": 64, "patch_size": 32}
    return vision_transformer.vit_base_patch32_clip_quickgelu_224(pretrained, **small | kwargs)


@register_model
def tiny_densenet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return densenet.densenet121(pretrained, **{"growth_rate": 8, "block_config": (2, 2)} | kwargs)
