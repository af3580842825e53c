"""Guards of the training glue that both one-class detectors share."""

from types import SimpleNamespace

import pytest

from anomalib_cxr.models import AnatPaste, MultiResPatchSSL


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
