"""Presets of AnatPaste: what they set, and that an argument wins over them."""

import pytest
import torch

from anomalib_cxr.models import AnatPaste
from anomalib_cxr.models.anat_paste.local_density import LocalDensity
from anomalib_cxr.models.components.kernel_density import GaussianKernelDensity


def settings(**arguments):
    model = AnatPaste(num_workers=0, **arguments)
    network = model.model
    return (model.input_size, model.max_steps, model.steps_per_epoch, network.fine_map, type(network.density))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ((128, 128), 250, 50, True, GaussianKernelDensity)),
        ({"preset": "paper"}, ((256, 256), 65536, 2048, False, GaussianKernelDensity)),
        ({"preset": "best"}, ((128, 128), 900, 150, False, LocalDensity)),
        ({"preset": "best", "density": "kernel"}, ((128, 128), 900, 150, False, GaussianKernelDensity)),
        ({"density": "local"}, ((128, 128), 250, 50, False, LocalDensity)),
        ({"preset": "best", "image_size": 64, "max_steps": 60}, ((64, 64), 60, 60, False, LocalDensity)),
        ({"fine_map": False}, ((128, 128), 250, 50, False, GaussianKernelDensity)),
    ],
)
def test_what_a_preset_sets(arguments: dict, expected: tuple) -> None:
    assert settings(**arguments) == expected


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="preset must be one of 'laptop', 'paper', 'best', not 'good'"):
        AnatPaste(preset="good")


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("preset", ["laptop", "paper", "best"])
def test_steps_are_those_of_plain_momentum(preset: str, momentum: float) -> None:
    """Sato et al.: SGD, rate 0.03, momentum 0.9, weight decay 3e-5; three steps of one weight by hand."""
    model = AnatPaste(preset=preset, momentum=momentum, num_workers=0, lr_schedule="constant")
    optimizer = model.configure_optimizers()["optimizer"]
    bias = model.model.classifier.bias
    expected, velocity = bias.detach().double(), torch.zeros(2).double()
    for gradient in (1.0, -3.0, 2.0):
        bias.grad = torch.full_like(bias, gradient)
        optimizer.step()
        velocity = momentum * velocity + gradient + 3e-5 * expected
        expected = expected - 0.03 * velocity
        torch.testing.assert_close(bias.detach().double(), expected, rtol=0, atol=1e-6)


def test_momentum_of_zero_is_taken_by_nesterovs_optimiser_too() -> None:
    group = AnatPaste(optimizer="sgd", momentum=0, num_workers=0).configure_optimizers()["optimizer"].param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0, False)
