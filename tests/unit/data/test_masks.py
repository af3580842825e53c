"""Masks of a whole data set: what contradicts the labels is refused, what is doubtful is said once, with counts."""

import logging

import drawn_sets
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from anomalib_cxr.data import RadiographTable
from anomalib_cxr.data.tables import TableError

LESION = np.zeros((48, 48), np.uint8)
LESION[10:20, 10:20] = 255  # 100 pixels


def write(root, masks):
    """16 normal and 8 abnormal films; ``masks(number, is_abnormal)`` gives a picture and its suffix, or None."""
    drawn_sets.radiograph_table(root)
    rows = list(drawn_sets.csv.DictReader((root / "images.csv").open()))
    for i, row in enumerate(rows):
        made = masks(i, row["label"] == "abnormal")
        row["mask_path"] = ""
        if made is not None:
            picture, suffix = made
            row["mask_path"] = f"masks/{i:03}{suffix}"
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(picture).save(root / row["mask_path"])
    drawn_sets.write_csv(root / "images.csv", rows)
    return root


def make(root, **arguments):
    return RadiographTable(root, table="images.csv", num_workers=0, **arguments)


def said(caplog):
    return [record.getMessage() for record in caplog.records if "mask" in record.getMessage()]


def test_plain_masks_and_empty_ones_of_normal_films_say_nothing(tmp_path, caplog):
    data = make(write(tmp_path, lambda _, sick: (LESION if sick else 0 * LESION, ".png")))
    data.setup()
    assert not said(caplog)
    masks = [item.gt_mask for part in (data.val_data, data.test_data) for item in part]
    assert sorted(int(mask.sum()) for mask in masks)[-8:] == [100] * 8


def test_a_normal_film_with_a_lesion_is_refused_or_counted(tmp_path, caplog):
    root = write(tmp_path, lambda i, sick: (LESION, ".png") if sick or i in {3, 9, 12} else None)
    with pytest.raises(TableError, match=r"3 of 16 normal images have a lesion in their mask.*003.png with 100 "):
        make(root).setup()
    with pytest.raises(ValueError, match="on_mask_conflict must be one of"):
        make(root, on_mask_conflict="skip")
    data = make(root, on_mask_conflict="warn", eval_batch_size=24)
    data.setup()
    list(data.val_data)
    (message,) = said(caplog)  # once, whatever is read
    assert "3 of 16 normal images have a lesion in their mask" in message
    assert message.endswith("they count in the pixel metrics")


def test_it_is_for_the_pixel_metrics(tmp_path):
    """What was silent before: the same scores, and another pixel AUROC."""
    root = write(tmp_path, lambda i, sick: (LESION, ".png") if sick or i < 16 else None)
    data = make(root, on_mask_conflict="warn")
    data.setup()
    items = list(data.val_data) + list(data.test_data)
    scores = np.concatenate([np.where(LESION, 1.0, 0.0).ravel() * int(item.gt_label) for item in items])
    counted = np.concatenate([item.gt_mask.numpy().ravel() for item in items])
    right = np.concatenate([item.gt_mask.numpy().ravel() * int(item.gt_label) for item in items])
    assert roc_auc_score(right, scores) == 1
    assert roc_auc_score(counted, scores) < 0.9


def test_an_abnormal_film_with_nothing_drawn_is_warned_of(tmp_path, caplog):
    root = write(tmp_path, lambda i, sick: (LESION * (i != 20), ".png") if sick else None)
    make(root).setup()
    (message,) = said(caplog)
    assert "1 abnormal images have a mask with nothing drawn" in message
    assert "020.dcm" in message


def test_doubtful_masks_are_counted_once_a_run(tmp_path, caplog):
    soft = LESION.copy()
    soft[9, 10:20], soft[20, 10:20] = 200, 60  # 20 pixels between, 10 of them above half
    kinds = {16: (LESION, ".jpg"), 17: (soft, ".png"), 18: (soft, ".png")}
    data = make(write(tmp_path, lambda i, sick: kinds.get(i, (LESION, ".png")) if sick else None))
    data.setup()
    for _ in range(2):
        sums = {
            item.image_path[-7:-4]: int(item.gt_mask.sum()) for part in (data.val_data, data.test_data) for item in part
        }
    assert {key: value for key, value in sums.items() if value} == {
        **{f"{i:03}": 100 for i in range(16, 24)},
        "017": 110,
        "018": 110,
    }
    with Image.open(tmp_path / "masks/016.jpg") as image:
        pixels = np.asarray(image)
    between = 40 + int(((pixels > 0) & (pixels < pixels.max())).sum())
    levels = 2 + (len(np.unique(pixels)) > 2)
    (message,) = said(caplog)
    expected = (
        f"3 of 8 masks are not plain: 1 are lossy, {levels} have more than two levels and {between} pixels between"
    )
    assert expected in message


def test_the_reader_of_a_run_with_workers_says_nothing_more(tmp_path, caplog):
    data = make(write(tmp_path, lambda i, sick: (LESION, ".jpg") if sick else None))
    with caplog.at_level(logging.WARNING):
        data.setup()
        for batch in data.test_dataloader():
            assert batch.gt_mask.sum() == 100 * batch.gt_label.sum()
    assert len(said(caplog)) == 1
