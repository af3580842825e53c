"""Guards of the training glue that both one-class detectors share."""

from types import SimpleNamespace

import pytest

from anomalib_cxr.models import (
    SQUID,
    AlphaGAN,
    AnatPaste,
    AutoEncoder,
    DeepSVDD,
    FAnoGAN,
    MultiResPatchSSL,
    PatchSVDD,
)
from anomalib_cxr.models.components.step_training import StepTrainingMixin


@pytest.mark.parametrize(
    ("model", "options"), [(AnatPaste, {}), (MultiResPatchSSL, {"patch_sizes": (32,)})], ids=["anat_paste", "multires"]
)
def test_more_processes_than_images_are_refused_before_training(model: type, options: dict) -> None:
    detector = model(backbone="resnet10t", image_size=64, **options)
    data = SimpleNamespace(train_data=range(2), train_batch_size=1, num_workers=0, external_collate_fn=list)
    detector._trainer = SimpleNamespace(
        datamodule=data, world_size=2, global_rank=0, global_step=0, accumulate_grad_batches=1
    )
    assert len(detector._step_loader()) == detector.steps_per_epoch
    detector._trainer.world_size = 3
    with pytest.raises(ValueError, match=r"has 2 images for 3 processes, .*: train with fewer processes"):
        detector._step_loader()


#: Images a step in the papers or their codes.
PUBLISHED = {AlphaGAN: 10, AnatPaste: 64, AutoEncoder: 64, DeepSVDD: 200, FAnoGAN: 64, PatchSVDD: 64, SQUID: 16}


@pytest.mark.parametrize(("model", "published"), PUBLISHED.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_a_batch_other_than_the_papers_is_said(
    model: type, published: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnatPaste, "on_fit_start", StepTrainingMixin.on_fit_start)  # its own looks for lungs
    for preset, batch, is_said in (("paper", 8, True), ("paper", published, False), ("laptop", 8, False)):
        detector = model(preset=preset)
        detector._trainer = SimpleNamespace(datamodule=SimpleNamespace(train_batch_size=batch))
        caplog.clear()
        detector.on_fit_start()
        said = f"preset=paper trains with batch {published}, the datamodule has train_batch_size=8."
        assert [record.getMessage() for record in caplog.records] == [said] * is_said
