"""Presets of AnatPaste: what they set, and that an argument wins over them."""

import pytest

from anomalib_cxr.models import AnatPaste
from anomalib_cxr.models.anat_paste.kernel_density import GaussianKernelDensity
from anomalib_cxr.models.anat_paste.local_density import LocalDensity


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
