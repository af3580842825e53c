"""Guards of the training glue that both one-class detectors share."""

from types import SimpleNamespace

import pytest

from anomalib_cxr.models import AnatPaste, MultiResPatchSSL
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


@pytest.mark.parametrize("batch", [8, 64])
def test_a_batch_other_than_the_papers_is_said(batch: int, caplog: pytest.LogCaptureFixture) -> None:
    detector = SimpleNamespace(datamodule=SimpleNamespace(train_batch_size=batch))
    StepTrainingMixin.warn_of_batch(detector, 64)  # type: ignore[arg-type]
    said = ["preset=paper trains with batch 64, the datamodule has train_batch_size=8."] if batch == 8 else []
    assert [record.getMessage() for record in caplog.records] == said
