"""Reading a file of weights in whichever known layout, and giving them to a timm model."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anomalib_cxr.models.components.weight_layouts.dinov2 import DINOV2, TRANSFORMERS_DINOV2
from anomalib_cxr.models.components.weight_layouts.layout import State, WeightLayout
from anomalib_cxr.models.components.weight_layouts.openai_clip import OPENAI_CLIP
from anomalib_cxr.models.components.weight_layouts.torchxrayvision import TORCHXRAYVISION

logger = logging.getLogger(__name__)

#: A layout plugs in here: the first that recognises a file takes it.
LAYOUTS = (DINOV2, TRANSFORMERS_DINOV2, OPENAI_CLIP, TORCHXRAYVISION)

#: What no other layout recognises has to have the names of the timm model itself.
TIMM = WeightLayout(name="timm's", recognise=lambda state: True, to_timm=dict)


def published_backbone(path: str | Path) -> str | None:
    """Timm model that weights of a file's layout are published for, None where these are many, as for timm's own.

    Args:
        path: As for :func:`load_weights`.

    Raises:
        ValueError: If the file is missing, or holds no plain weights.
    """
    return _layout_of(_read(path)).backbone


def load_weights(model: nn.Module, path: str | Path, backbone: str) -> WeightLayout:
    """Load a file of weights into a timm model that has no classifier.

    A first layer of three channels is summed over them for a model of one. Position codes keep the size that the file
    has them for: the model is brought to it.

    Args:
        model: From ``timm.create_model``, with ``num_classes=0``.
        path: ``.safetensors``, or a file of ``torch.save`` with nothing but weights, by themselves or under
            ``state_dict`` or ``model``.
        backbone: Name of the model, for messages.

    Returns:
        The layout of the file, which knows what its weights were trained with.

    Raises:
        ValueError: If the file is missing, holds no plain weights, is in no known layout, or is of another model.
    """
    state = _read(path)
    layout = _layout_of(state)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    weights = _without_classifier(layout.to_timm(state), config.get("classifier"))
    expected = model.state_dict()
    if layout is TIMM and not weights.keys() & expected.keys():
        known = "; ".join(one.name for one in (*LAYOUTS, TIMM))
        msg = (
            f"The weights in {path}, which begin with {next(iter(state))}, are in no layout known here ({known}): "
            f"rename them as timm does for backbone={backbone}."
        )
        raise ValueError(msg)
    _match_first_layer(weights, expected, config.get("first_conv"))
    _match_places(model, weights)
    if reason := _misfit(weights, model.state_dict()):
        hint = f", such as {layout.backbone}" if layout.backbone not in (None, backbone) else ""
        msg = (
            f"The weights in {path} ({layout.name} layout) are not those of backbone={backbone}: {reason}; "
            f"give the backbone that they are of{hint}."
        )
        raise ValueError(msg)
    model.load_state_dict(weights, strict=False)  # strict but for counters that old files lack
    logger.info("Weights of %s: %s layout, for backbone %s.", Path(path).name, layout.name, backbone)
    if layout.mean is not None:
        logger.info(
            "Unless given, mean=%g, std=%g and input_range=%s are what the published ones of this layout want.",
            layout.mean,
            layout.std,
            list(layout.input_range),
        )
    return layout


def _read(path: str | Path) -> dict[str, Tensor]:
    """Weights of a file, without what is wrapped around them."""
    path = Path(path)
    if not path.is_file():
        msg = f"There is no weights file {path}: give `weights_path` an existing file."
        raise ValueError(msg)
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # noqa: BLE001  # a pickle of a model, or a program, raises anything
        msg = (
            f"{path} is damaged or holds more than weights, and nothing of it was run: load it with the package it "
            "comes from, and save its weights with torch.save(model.state_dict(), …)."
        )
        raise ValueError(msg) from None
    for wrap in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrap), Mapping):
            state = state[wrap]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        msg = f"{path} holds no weights by name: save them with torch.save(model.state_dict(), …)."
        raise ValueError(msg)
    for prefix in ("module.", "model."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def _layout_of(state: State) -> WeightLayout:
    return next(layout for layout in (*LAYOUTS, TIMM) if layout.recognise(state))


def _without_classifier(weights: dict[str, Tensor], classifiers: Any) -> dict[str, Tensor]:
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers or ())
    return {key: value for key, value in weights.items() if key.rpartition(".")[0] not in names}


def _match_first_layer(weights: dict[str, Tensor], expected: State, convolutions: Any) -> None:
    """Share the first layer's weights out over as many channels as the model has, all of which are the same grey."""
    for name in (convolutions,) if isinstance(convolutions, str) else tuple(convolutions or ()):
        key = f"{name}.weight"
        if key in weights and key in expected and weights[key].shape[1] != (channels := expected[key].shape[1]):
            whole = weights[key].float().sum(dim=1, keepdim=True)
            weights[key] = whole.expand(-1, channels, *whole.shape[2:]) / channels


def _match_places(model: Any, weights: State) -> None:
    """Bring a transformer to the grid, a square one, that the file's position codes are of."""
    theirs, ours = weights.get("pos_embed"), getattr(model, "pos_embed", None)
    if theirs is None or ours is None or theirs.shape == ours.shape or not hasattr(model, "set_input_size"):
        return
    prefix = ours.shape[1] - model.patch_embed.num_patches
    side = math.isqrt(max(0, theirs.shape[1] - prefix))
    if side and side**2 == theirs.shape[1] - prefix:
        height, width = model.patch_embed.patch_size
        model.set_input_size((side * height, side * width))


def _misfit(weights: State, expected: State) -> str | None:
    """The first thing by which weights do not fit a model, None if they do."""
    lacking = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in expected]
    for names, said in ((lacking, "lack"), (unknown, "have, unlike the model,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"they {said} {names[0]}{more}"
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            return f"{name} has the shape {tuple(value.shape)} and not {tuple(expected[name].shape)}"
    return None
