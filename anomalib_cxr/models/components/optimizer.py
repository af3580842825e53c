"""Optimisers by timm's names, with two of their corners mended."""

from collections.abc import Iterable, Mapping
from typing import Any

import timm.optim
import torch
from torch import nn


def build_optimizer(
    parameters_or_module: nn.Module | Iterable[Any],
    name: str,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    filter_bias_and_bn: bool = False,
    **arguments: Any,
) -> torch.optim.Optimizer:
    """Build the optimiser that ``timm.optim.create_optimizer_v2`` builds, but for two cases.

    timm's names differ where one would not look for it: ``"sgd"`` is Nesterov's momentum, ``"momentum"`` the classical
    one. Mended here (ours):

    - timm's LARS applies its trust ratio only where there is weight decay, so that ``weight_decay=0`` made plain SGD of
      it, with steps longer than the weights. Here the same parameters have it with and without decay (You et al. 2017,
      arXiv 1708.03888, Algorithm 1, has no such exception).
    - ``momentum=0`` with a Nesterov optimiser, which torch refuses, is plain gradient descent.

    Args:
        parameters_or_module: Module, or parameters or their groups, whose ``params`` may be a module.
        name: Name in ``timm.optim.list_optimizers()``, after ``"lookahead_"`` if wanted.
        learning_rate: Learning rate.
        momentum: Momentum, 0 or more, for optimisers that have one.
        weight_decay: Weight decay, 0 or more.
        filter_bias_and_bn: Spare parameters of one dimension, biases and norms, the weight decay, and with LARS the
            trust ratio (SimCLR, Chen et al. 2020, section 2.2 and its code); for modules only.
        **arguments: For the optimiser, for example ``betas``.

    Returns:
        The optimiser.

    Raises:
        ValueError: If timm knows no such optimiser, or a number is out of range.
    """
    try:
        info = timm.optim.get_optimizer_info(name.lower().split("_")[-1])
    except ValueError as error:
        msg = f"optimizer={name!r} is none of timm's: timm.optim.list_optimizers() lists them."
        raise ValueError(msg) from error
    more: dict[str, Any] = dict(arguments)
    if momentum == 0 and (info.defaults or {}).get("nesterov"):
        more["nesterov"] = False
    adapts = info.opt_class is timm.optim.Lars and weight_decay == 0
    if adapts:
        more["always_adapt"] = True
    given = [{"params": parameters_or_module}] if isinstance(parameters_or_module, nn.Module) else parameters_or_module
    return timm.optim.create_optimizer_v2(
        [part for group in given for part in _parts(group, weight_decay, filter_bias_and_bn, adapts)],
        opt=name,
        lr=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        **more,
    )


def _parts(group: Any, weight_decay: float, filter_bias_and_bn: bool, adapts: bool) -> list[Any]:
    """Groups of parameters in place of a group of a module, by whether they decay, as timm makes them."""
    module = group["params"] if isinstance(group, Mapping) else None
    if not isinstance(module, nn.Module):
        return [group]
    parts = timm.optim.param_groups_weight_decay(
        module,
        1.0 if adapts else weight_decay,  # without decay, the parameters that would have one are those to adapt
        weight_decay_exclude_1d=filter_bias_and_bn,
        no_weight_decay_list=getattr(module, "no_weight_decay", tuple)(),
    )
    if adapts:
        parts = [part | {"always_adapt": part["weight_decay"] > 0, "weight_decay": 0.0} for part in parts]
    return [{**group, **part} for part in parts]
