"""PhantomCXR: what is in the folder is whole, true to the renderer, and what the loaders hand out."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anomalib_cxr.data import PhantomCXR
from anomalib_cxr.data.phantom import LESIONS, render_phantom
from anomalib_cxr.imaging import read_radiograph

SMALL = {"image_size": 48, "num_train": 6, "val_per_class": 3, "test_per_class": 5, "num_workers": 0}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    data = PhantomCXR(root=tmp_path_factory.mktemp("phantom"), **SMALL)
    data.setup()
    return data


def contents(folder):
    """Every file of a set and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_splits(drawn):
    table = drawn.samples
    assert table.groupby(["split", "label"]).size().to_dict() == {
        ("train", "normal"): 6,
        ("val", "normal"): 3,
        ("val", "abnormal"): 3,
        ("test", "normal"): 5,
        ("test", "abnormal"): 5,
    }
    assert table["patient_id"].is_unique
    assert sorted(table.loc[(table["split"] == "test") & (table["findings"] != ""), "findings"]) == sorted(LESIONS)


def test_files_hold_what_was_drawn(drawn):
    for row in drawn.samples.itertuples():
        film = render_phantom(48, 0, row.patient, row.findings or None)
        pixels = cv2.imread(row.image_path, cv2.IMREAD_UNCHANGED)
        assert pixels.dtype == np.uint16
        assert pixels.max() > 2047
        # Read without being told the depth: half a step of 12 bits off at most.
        assert np.abs(read_radiograph(row.image_path) - film.image).max() <= 0.5 / 4095 + 1e-6
        if row.mask_path:
            assert np.array_equal(cv2.imread(row.mask_path, cv2.IMREAD_UNCHANGED), film.mask * np.uint8(255))


def test_loaders(drawn):
    (train,) = list(drawn.train_dataloader())
    assert train.image.shape == (6, 3, 48, 48)
    assert not train.gt_label.any()
    (test,) = list(drawn.test_dataloader())
    assert torch.equal(test.gt_mask.flatten(1).any(1), test.gt_label.bool())
    assert int(test.gt_label.sum()) == 5


def test_killed_run_goes_on_where_it_stopped(tmp_path, drawn, monkeypatch):
    replace, calls = Path.replace, []

    def killed(self, target):
        calls.append(target)
        if len(calls) == 12:
            raise KeyboardInterrupt  # after the bytes were written, before the file got its name
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    broken = PhantomCXR(root=tmp_path, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        broken.prepare_data()
    left = contents(broken.folder)
    assert len(left) == 11
    assert not (broken.folder / "samples.csv").exists()

    calls.clear()
    calls.extend([None] * 100)
    again = PhantomCXR(root=tmp_path, **SMALL)
    again.prepare_data()
    assert len(calls) - 100 == len(contents(drawn.folder)) - 11 + 1  # only the missing ones, and the table
    assert contents(again.folder) == contents(drawn.folder)
    assert (again.folder / "samples.csv").is_file()


def test_two_runs_at_once_make_one_set(tmp_path, drawn):
    sets = [PhantomCXR(root=tmp_path, **SMALL) for _ in range(3)]
    threads = [threading.Thread(target=data.prepare_data) for data in sets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(sets[0].folder) == contents(drawn.folder)
    assert not list(sets[0].folder.rglob("*.tmp"))


def test_second_use_draws_only_what_was_deleted(tmp_path):
    data = PhantomCXR(root=tmp_path, **SMALL)
    data.prepare_data()
    before = {path: path.stat().st_mtime_ns for path in data.folder.rglob("*.png")}
    lost = sorted(before)[3]
    content = lost.read_bytes()
    lost.unlink()
    PhantomCXR(root=tmp_path, **SMALL).prepare_data()
    assert lost.read_bytes() == content
    touched = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert touched == {lost.name}


def test_number_of_training_films_leaves_the_test_set_alone(tmp_path, drawn):
    other = PhantomCXR(root=tmp_path, **{**SMALL, "num_train": 2})
    other.prepare_data()
    mine, theirs = contents(drawn.folder), contents(other.folder)
    assert other.folder.name != drawn.folder.name
    assert theirs == {name: content for name, content in mine.items() if name in theirs}
    assert len(mine) - len(theirs) == 4


def test_seed_and_kinds_change_the_set(tmp_path, drawn):
    other = PhantomCXR(root=tmp_path, seed=1, kinds=["effusion"], **SMALL)
    assert set(other.samples["findings"]) == {"", "effusion"}
    mine, theirs = contents(drawn.folder), contents(other.folder)
    assert all(theirs[name] != mine[name] for name in theirs if name in mine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 16}, "at least 32 pixels, got 16"),
        ({"num_train": -1}, "num_train must be from 1 to"),
        ({"val_per_class": 0}, "val_per_class must be from 1 to"),
        ({"test_per_class": 10_000_000}, "test_per_class must be from 1 to 9999999, got 10000000"),
        ({"seed": -3}, "seed must not be negative, got -3"),
        ({"kinds": ["nodule", "mass"]}, "'mass': choose from nodule, consolidation"),
        ({"kinds": []}, "at least one of nodule"),
        ({"kinds": "nodule"}, "must list different lesions"),
        ({"kinds": ["nodule", "nodule"]}, "must list different lesions"),
    ],
)
def test_bad_settings(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        PhantomCXR(root=tmp_path, num_workers=0, **arguments)


def test_root_that_is_a_file(tmp_path):
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(OSError, match="file is a file, give a folder"):
        PhantomCXR(root=root, **SMALL).setup()


def test_root_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"cannot draw into .* \(Permission denied\), give a root to write to"):
        PhantomCXR(root=tmp_path / "new", **SMALL).samples  # noqa: B018
