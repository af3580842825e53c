"""The exported resize is torchvision's antialiased one, and Anomalib's checkpoints keep it."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize

from anomalib_cxr.deploy import resize as numpy_resize
from anomalib_cxr.models import AnatPaste
from anomalib_cxr.models.components.exact_resize import ExactResizePreProcessor, antialiased_resize

SIZES = [
    ((512, 512), (256, 256)),
    ((701, 333), (96, 128)),
    ((40, 64), (128, 128)),
    ((64, 300), (64, 64)),
    ((2, 3), (5, 2)),
    ((2500, 90), (32, 32)),
]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_equals_torchvision(before: tuple[int, int], after: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *before, generator=torch.Generator().manual_seed(0))
    expected = Resize(after, antialias=True)(images)
    torch.testing.assert_close(antialiased_resize(images, after), expected, rtol=0, atol=1e-5)
    in_numpy = numpy_resize.antialiased_resize(images[0, 0].numpy(), after)
    np.testing.assert_allclose(in_numpy, expected[0, 0].numpy(), rtol=0, atol=1e-5)
    assert in_numpy.dtype == np.float32


def test_same_size_changes_no_bit() -> None:
    images = torch.rand(1, 1, 37, 61)
    assert torch.equal(antialiased_resize(images, (37, 61)), images)


def test_exported_path_is_the_training_path_where_anomalibs_is_not() -> None:
    images = torch.rand(2, 1, 512, 512).expand(-1, 3, -1, -1)
    ours, stock = (kind(Resize((256, 256), antialias=True)) for kind in (ExactResizePreProcessor, PreProcessor))
    expected = ours.transform(images)[:, :1]
    torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-5)
    assert (stock(images)[:, :1] - expected).abs().max() > 0.1


def test_colour_is_averaged_once_whenever() -> None:
    images = torch.rand(2, 3, 90, 70)
    exported = ExactResizePreProcessor(Resize((32, 32), antialias=True))(images)
    torch.testing.assert_close(exported, Resize((32, 32), antialias=True)(images).mean(1, keepdim=True))


def test_compose_keeps_its_other_parts_and_channels() -> None:
    transform = Compose([Resize((48, 32), antialias=True), Normalize([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])])
    images = torch.rand(2, 3, 100, 200)
    torch.testing.assert_close(ExactResizePreProcessor(transform)(images), transform(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "resize", [Resize(64, antialias=True), Resize((64, 64), interpolation=InterpolationMode.BICUBIC, antialias=True)]
)
def test_what_cannot_be_exported_exactly_is_said(resize: Resize, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ExactResizePreProcessor(resize)
    assert "is exported without antialiasing" in caplog.text


def test_nothing_to_do_is_nothing_done() -> None:
    images = torch.rand(1, 3, 8, 8)
    assert ExactResizePreProcessor(None)(images) is images


def test_checkpoint_brings_size_and_exact_export_back(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    model = AnatPaste(image_size=96, backbone="resnet10t")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = AnatPaste.load_from_checkpoint(tmp_path / "model.ckpt")
    assert tuple(loaded.input_size or ()) == (96, 96)
    assert extract_transforms_by_type(loaded.pre_processor.transform, Resize)
    images = torch.rand(1, 3, 200, 150)
    torch.testing.assert_close(
        loaded.pre_processor(images), model.pre_processor.transform(images).mean(1, keepdim=True), rtol=0, atol=1e-5
    )
