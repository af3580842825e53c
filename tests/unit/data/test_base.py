"""The base datamodule keeps what the table says, against Anomalib's habit of re-splitting."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import AnomalibDataModule
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torchvision.transforms.v2 import Compose, RandomHorizontalFlip, Resize

from anomalib_cxr.data.base import RadiographDataModule, check_samples
from anomalib_cxr.data.dataset import RadiographDataset

PLAN = {"train": {"normal": 5}, "val": {"normal": 2, "abnormal": 3}, "test": {"normal": 4, "abnormal": 2}}


class DrawnSet(RadiographDataModule):
    """Small drawn images; abnormal ones have a bright square and, on request, its mask."""

    def __init__(self, root: str | Path, masks: bool = False, **kwargs):
        super().__init__(root=root, num_workers=kwargs.pop("num_workers", 0), **kwargs)
        self.masks = masks
        self.calls = 0

    def make_samples(self) -> pd.DataFrame:
        self.calls += 1
        rows = []
        for split, labels in PLAN.items():
            for label, number in labels.items():
                for i in range(number):
                    path = self.root / f"{split}_{label}_{i}.png"
                    pixels = np.random.default_rng(len(rows)).integers(0, 100, (24, 20), dtype=np.uint8)
                    mask_path = ""
                    if label == "abnormal":
                        pixels[:8, :8] = 255
                        if self.masks:
                            mask_path = str(self.root / f"mask_{split}_{i}.png")
                            Image.fromarray((pixels == 255).astype(np.uint8)).save(mask_path)
                    Image.fromarray(pixels).save(path)
                    rows.append((str(path), label, split, f"{split}{label}{i}", "", mask_path))
        columns = ["image_path", "label", "split", "patient_id", "findings", "mask_path"]
        return pd.DataFrame(rows, columns=columns)


def table(**changes) -> pd.DataFrame:
    rows = [
        (f"{split}{label}{i}.png", label, split, f"{split}{label}{i}", "", "")
        for split, labels in PLAN.items()
        for label, number in labels.items()
        for i in range(number)
    ]
    frame = pd.DataFrame(rows, columns=["image_path", "label", "split", "patient_id", "findings", "mask_path"])
    return frame.assign(**changes)


@pytest.mark.parametrize("stage", [None, TrainerFn.FITTING])
def test_no_image_is_dropped_or_moved_by_setup(tmp_path, stage):
    data = DrawnSet(tmp_path)
    data.setup(stage)
    for split in ("train", "val", "test"):
        labels = getattr(data, f"{split}_data").samples["label"].value_counts().to_dict()
        assert labels == PLAN[split]
    batches = list(data.test_dataloader())
    seen = sorted(path for batch in batches for path in batch.image_path)
    assert seen == sorted(str(p) for p in tmp_path.glob("test_*.png"))
    assert sum(int(batch.gt_label.sum()) for batch in batches) == 2
    data.setup(stage)
    assert data.calls == 1


def test_items_hold_the_pixels_of_the_file(tmp_path):
    data = DrawnSet(tmp_path)
    data.setup()
    item = data.test_data[0]
    assert data.task == "classification"
    assert item.gt_mask is None
    expected = np.asarray(Image.open(item.image_path)) / 255
    assert item.image.shape == (3, 24, 20)
    assert item.image.dtype == torch.float32
    for channel in item.image:
        np.testing.assert_allclose(channel.numpy(), expected, atol=1e-6)


def test_masks_move_with_their_images(tmp_path):
    torch.manual_seed(0)
    data = DrawnSet(tmp_path, masks=True, augmentations=Compose([RandomHorizontalFlip(p=0.5), Resize((48, 40))]))
    data.setup()
    assert data.task == "segmentation"
    sides = set()
    for index, row in data.test_data.samples.iterrows():
        item = data.test_data[index]
        assert item.gt_mask.shape == (48, 40)
        if row["label"] == "normal":
            assert not item.gt_mask.any()
        else:
            bright = item.image[0] > 0.9
            assert (bright & item.gt_mask.bool()).sum() > 0.8 * bright.sum()
            sides.add(bool(item.gt_mask[0, 0]))
            assert item.gt_mask.sum() == 16 * 16
    assert sides


def test_resize_alone_equals_resize_of_three_channels(tmp_path):
    data = DrawnSet(tmp_path)
    data.setup()
    plain = data.test_data[1].image
    data.test_data.augmentations = Resize((11, 13), antialias=True)
    torch.testing.assert_close(data.test_data[1].image, Resize((11, 13), antialias=True)(plain))


def test_workers_read_the_same(tmp_path):
    alone = DrawnSet(tmp_path, eval_batch_size=4)
    alone.setup()
    forked = DrawnSet(tmp_path, eval_batch_size=4, num_workers=1)
    forked.setup()
    for one, other in zip(alone.test_dataloader(), forked.test_dataloader(), strict=True):
        assert one.image_path == other.image_path
        assert torch.equal(one.image, other.image)
    copied = pickle.loads(pickle.dumps(alone.test_data))
    assert torch.equal(copied[0].image, alone.test_data[0].image)
    assert copied.task == alone.test_data.task


def test_subsample_keeps_task_and_rows(tmp_path):
    data = DrawnSet(tmp_path, masks=True)
    data.setup()
    part = data.val_data.subsample([0, 3])
    assert part.task == "segmentation"
    assert list(part.samples["image_path"]) == list(data.val_data.samples["image_path"].iloc[[0, 3]])


def test_setting_samples_touches_no_file():
    frame = check_samples(table(), "X")
    dataset = RadiographDataset(frame)  # no file of these names exists
    assert dataset.has_normal
    assert dataset.has_anomalous
    assert list(frame["label_index"]) == [int(label == "abnormal") for label in frame["label"]]


def test_mask_of_another_size_is_an_error(tmp_path):
    data = DrawnSet(tmp_path, masks=True)
    data.setup()
    row = data.test_data.samples.query("label == 'abnormal'").index[0]
    path = data.test_data.samples["mask_path"][row]
    Image.fromarray(np.ones((5, 5), dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"mask is \(5, 5\).*is \(24, 20\)"):
        data.test_data[row]
    Path(path).write_bytes(b"no picture")
    with pytest.raises(ValueError, match="mask cannot be read"):
        data.test_data[row]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="patient_id"), r"lacks the columns \['patient_id'\]"),
        (lambda t: t.assign(label="healthy"), "unknown values .'healthy'. in column 'label'"),
        (lambda t: t.assign(split=t["split"].replace("val", "valid")), "unknown values .'valid'. in column 'split'"),
        (lambda t: t[t["split"] != "val"], "the val split is empty"),
        (lambda t: t[t["split"] != "test"], "the test split is empty"),
        (lambda t: t[t["split"] != "train"], "the train split is empty"),
        (lambda t: t.head(0), "the train split is empty"),
        (lambda t: t[(t["split"] != "val") | (t["label"] == "normal")], "no abnormal image in the val split"),
        (lambda t: t[(t["split"] != "test") | (t["label"] != "normal")], "no normal image in the test split"),
        (lambda t: t.assign(label="abnormal"), "5 abnormal images in the train split"),
        (lambda t: t.assign(patient_id="p1"), "1 patients are in more than one split, the first is p1"),
        (lambda t: t.assign(patient_id=""), "16 images have no patient_id"),
        (lambda t: t.assign(image_path="a.png"), "15 images are listed more than once, the first is a.png"),
        (
            lambda t: t.assign(mask_path=["m.png" if p == "testabnormal0" else "" for p in t["patient_id"]]),
            "4 abnormal images have no mask",
        ),
    ],
)
def test_a_bad_table_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_samples(change(table()), "X")


def test_from_yaml(tmp_path):
    config = tmp_path / "data.yaml"
    config.write_text(
        f"class_path: {__name__}.DrawnSet\ninit_args:\n  root: {tmp_path}\n  eval_batch_size: 3\n  seed: 7\n"
    )
    data = AnomalibDataModule.from_config(config)
    assert (data.root, data.eval_batch_size, data.seed) == (tmp_path, 3, 7)
