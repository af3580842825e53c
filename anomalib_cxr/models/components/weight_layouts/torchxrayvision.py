"""TorchXRayVision's DenseNet-121."""

from torch import Tensor

from anomalib_cxr.models.components.weight_layouts.layout import State, WeightLayout

_ONE_CHANNEL = 1


def _recognise(state: State) -> bool:
    """Its names are those of every DenseNet, but it has one input channel, and thresholds of its findings."""
    stem = state.get("features.conv0.weight")
    return stem is not None and ("op_threshs" in state or stem.shape[1] == _ONE_CHANNEL)


def _to_timm(state: State) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("features.")}


#: Cohen et al., MIDL 2022. Films are stretched to [-1024, 1024] and not standardised.
TORCHXRAYVISION = WeightLayout(
    name="TorchXRayVision's DenseNet",
    recognise=_recognise,
    to_timm=_to_timm,
    backbone="densenet121",
    mean=0.0,
    std=1.0,
    input_range=(-1024.0, 1024.0),
)
