"""Whole training runs on a tiny drawn set: reproducibility, resuming, the bank, the chosen checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback
from PIL import Image
from tiny_radiographs import TinyRadiographs
from torchvision.transforms import v2

from anomalib_cxr.anatomy import regions
from anomalib_cxr.anatomy.lung_segmentation import segment_lungs_with_quality
from anomalib_cxr.models import AnatPaste

SMALL = {"image_size": 64, "max_steps": 8, "steps_per_epoch": 2, "num_workers": 0, "seed": 3, "backbone": "resnet10t"}


def _engine(root: Path, **kwargs) -> Engine:
    return Engine(default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False, **kwargs)


def _weights(root: Path) -> Path:
    (folder,) = root.glob("AnatPaste/*/latest/weights/lightning")
    return folder


def _fit(root: Path, data: TinyRadiographs, ckpt_path: Path | None = None, **kwargs) -> tuple[AnatPaste, Engine]:
    model, engine = AnatPaste(**(SMALL | kwargs)), _engine(root)
    engine.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, engine


def _difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a if a[key].numel())


class _StopAt(Callback):
    """Stops a run dead after an epoch, as a time limit would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def test_same_seed_same_bits_other_seed_other_weights(tmp_path: Path, tiny_root: Path) -> None:
    first, _ = _fit(tmp_path / "a", TinyRadiographs(tiny_root, count=6), max_steps=4)
    torch.rand(17)  # whatever the global generator has gone through
    second, _ = _fit(tmp_path / "b", TinyRadiographs(tiny_root, count=6), max_steps=4)
    other, _ = _fit(tmp_path / "c", TinyRadiographs(tiny_root, count=6), max_steps=4, seed=4)
    assert all(
        torch.equal(x, y) for x, y in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert _difference(first.state_dict(), other.state_dict()) > 1e-3


@pytest.mark.parametrize(
    ("augmentation", "checkpoint"),
    [(None, "best"), (v2.ColorJitter(brightness=0.3), "last")],
    ids=["plain, best", "augmented, last"],
)
def test_resumed_run_equals_unbroken(
    tmp_path: Path, tiny_root: Path, augmentation: v2.Transform | None, checkpoint: str
) -> None:
    data = lambda: TinyRadiographs(tiny_root, train_augmentations=augmentation)  # noqa: E731
    options = {"checkpoint": checkpoint, "seed": 1}  # a seed whose plain run is best after it was resumed
    unbroken, _ = _fit(tmp_path / "unbroken", data(), **options)
    stopped = AnatPaste(**(SMALL | options))
    with pytest.raises(BaseException):  # noqa: B017 - Lightning turns the interrupt into an exit
        _engine(tmp_path / "stopped", callbacks=[_StopAt(2)]).fit(stopped, datamodule=data())
    half = _weights(tmp_path / "stopped") / "model.ckpt"
    assert torch.load(half, weights_only=True)["global_step"] == 4
    resumed, engine = _fit(tmp_path / "resumed", data(), ckpt_path=half, **options)
    assert engine.trainer.global_step == 8
    assert _difference(unbroken.state_dict(), resumed.state_dict()) < 1e-6
    assert unbroken._choice.best_step == resumed._choice.best_step
    final = "last.ckpt" if checkpoint == "best" else "model.ckpt"
    a, b = (torch.load(_weights(tmp_path / run) / final, weights_only=True) for run in ("unbroken", "resumed"))
    assert a["global_step"] == b["global_step"] == 8
    assert _difference(a["state_dict"], b["state_dict"]) < 1e-6


def test_bank_is_the_unaugmented_training_set_in_evaluation_mode(tmp_path: Path, tiny_root: Path) -> None:
    data = TinyRadiographs(tiny_root, train_augmentations=v2.ColorJitter(brightness=0.5))
    model, _ = _fit(tmp_path, data, checkpoint="last")
    model.eval()
    plain = TinyRadiographs(tiny_root)
    plain.setup("fit")
    images = torch.stack([plain.train_data[i].image for i in range(len(plain.train_data))])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.model.embed(images), dim=1)
    torch.testing.assert_close(model.model.density.references, expected, rtol=1e-4, atol=1e-5)


def test_lung_masks_are_kept_beside_cached_images_and_follow_the_files(tmp_path: Path, monkeypatch) -> None:
    data = TinyRadiographs(tmp_path / "data", cache_dir=tmp_path / "cache", cache_size=64)
    first, _ = _fit(tmp_path / "first", data, max_steps=2)
    assert len(list((tmp_path / "cache" / "lung_masks").iterdir())) == 12

    segmented = []

    def recording(image: np.ndarray, method: str) -> tuple:
        segmented.append(image)
        return segment_lungs_with_quality(image, method)

    monkeypatch.setattr(regions, "segment_lungs_with_quality", recording)
    second, _ = _fit(tmp_path / "second", data, max_steps=2)
    assert segmented == []
    assert np.array_equal(second.region_masks.packed, first.region_masks.packed)

    changed = Path(data.train_data.samples.image_path[5])
    with Image.open(changed) as film:
        upper = film.transform(film.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, 8), fillcolor=191)
    upper.save(changed)
    third, _ = _fit(tmp_path / "third", data, max_steps=2)
    assert len(segmented) == 1
    differs = (third.region_masks.packed != first.region_masks.packed).any(axis=1)
    assert [third.region_masks.paths[row] for row in differs.nonzero()[0]] == [str(changed)]


def test_without_a_cache_lung_masks_stay_in_memory(tmp_path: Path) -> None:
    data = TinyRadiographs(tmp_path / "data")
    model, _ = _fit(tmp_path / "run", data, max_steps=2)
    assert len(model.region_masks) == 12
    assert not [path for path in tmp_path.rglob("*") if "lung_masks" in path.name or path.suffix == ".npz"]


def test_printed_auroc_belongs_to_the_chosen_checkpoint(tmp_path: Path, tiny_root: Path) -> None:
    model, engine = AnatPaste(**SMALL, learning_rate=0.1), _engine(tmp_path)
    aurocs = []
    original = model.on_validation_epoch_end

    def record() -> None:
        original()
        aurocs.append((engine.trainer.global_step, float(engine.trainer.callback_metrics["image_AUROC"])))

    model.on_validation_epoch_end = record
    (printed,) = engine.train(model, datamodule=TinyRadiographs(tiny_root))
    weights = _weights(tmp_path)
    checkpoint = torch.load(weights / "model.ckpt", weights_only=True)
    best_step = max(aurocs, key=lambda pair: (pair[1], -pair[0]))[0]
    assert checkpoint["global_step"] == best_step
    # From disk into a fresh model, bank and thresholds included.
    fresh = AnatPaste.load_from_checkpoint(weights / "model.ckpt")
    (again,) = _engine(tmp_path / "again").test(fresh, datamodule=TinyRadiographs(tiny_root))
    assert again == pytest.approx(printed)
    assert _difference(fresh.state_dict(), model.state_dict()) == 0
    assert torch.load(weights / "last.ckpt", weights_only=True)["global_step"] == 8


def test_held_out_normals_are_hardly_marked(tmp_path: Path, tiny_root: Path) -> None:
    model, engine = AnatPaste(**SMALL), _engine(tmp_path)
    data = TinyRadiographs(tiny_root)  # labels only, no masks
    engine.fit(model, datamodule=data)
    for part, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = engine.predict(model, dataloaders=loader)
        masks, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("pred_mask", "gt_label"))
        marked = float(masks[~labels.bool()].float().mean())
        assert marked < 0.2
        assert marked > 0 or part == "test"  # the threshold is a quantile of these maps
    assert (len(labels), int(labels.sum())) == (24, 12)


def test_validation_without_abnormal_images_keeps_the_last(tmp_path: Path, tiny_root: Path, caplog) -> None:
    data = TinyRadiographs(tiny_root)
    data.setup("fit")
    data.val_data.samples = data.val_data.samples[data.val_data.samples.label_index == 0]
    data._is_setup = True
    model, _ = _fit(tmp_path, data)
    assert "no two classes to choose by" in caplog.text
    assert torch.isfinite(model.post_processor.pixel_threshold)


@pytest.mark.parametrize("variant", ["cutpaste_normal", "cutpaste_scar", "cutpaste_3way", "cutpaste_union"])
def test_variants_learn_and_score(tmp_path: Path, tiny_root: Path, variant: str) -> None:
    model, _ = _fit(tmp_path, TinyRadiographs(tiny_root), variant=variant, max_steps=2)
    before = AnatPaste(**SMALL, variant=variant)
    assert model.model.classifier.out_features == (3 if variant == "cutpaste_3way" else 2)
    assert (model.model.classifier.weight - before.model.classifier.weight).abs().max() > 0
    assert len(model.model.density.references) == 12


@pytest.mark.parametrize(
    "moved",
    [v2.RandomHorizontalFlip(), v2.Compose([v2.ColorJitter(), v2.RandomApply([v2.RandomRotation(5)])])],
)
def test_augmentations_that_move_pixels_are_refused(tmp_path: Path, tiny_root: Path, moved: v2.Transform) -> None:
    data = TinyRadiographs(tiny_root, train_augmentations=moved)
    with pytest.raises(ValueError, match="may move pixels away from the region masks"):
        _fit(tmp_path, data)


def test_stock_folder_datamodule_trains(tmp_path: Path, tiny: TinyRadiographs) -> None:
    from anomalib.data import Folder

    tiny.setup("fit")
    for split, label in (("train", "normal"), ("test", "normal"), ("test", "abnormal")):
        folder = tmp_path / "data" / split / label
        folder.mkdir(parents=True)
        for path in tiny.root.glob(f"{split}_{label}_*.png"):
            (folder / path.name).write_bytes(path.read_bytes())
    data = Folder(
        name="tiny",
        root=tmp_path / "data",
        normal_dir="train/normal",
        abnormal_dir="test/abnormal",
        normal_test_dir="test/normal",
        train_batch_size=4,
        eval_batch_size=4,
        num_workers=0,
    )
    (metrics,) = _engine(tmp_path).train(AnatPaste(**(SMALL | {"max_steps": 2})), datamodule=data)
    assert 0 <= metrics["image_AUROC"] <= 1


def test_bad_arguments_name_themselves() -> None:
    for arguments, message in (
        ({"preset": "huge"}, "preset must be one of"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"image_size": 16}, "image_size must be at least 32"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"checkpoint": "first"}, "checkpoint must be one of 'best', 'last', not 'first'"),
        ({"color_jitter": 1.0}, r"color_jitter must lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            AnatPaste(**arguments)


def test_untrained_model_and_diverged_loss_say_so(tmp_path: Path, tiny_root: Path) -> None:
    with pytest.raises(RuntimeError, match="reference bank is empty"):
        _engine(tmp_path).test(AnatPaste(**SMALL), datamodule=TinyRadiographs(tiny_root))
    with pytest.raises(RuntimeError, match=r"The loss is nan at step \d+: lower learning_rate"):
        _fit(tmp_path, TinyRadiographs(tiny_root), learning_rate=1e30, max_steps=8)


def test_training_without_datamodule_is_refused(tmp_path: Path, tiny: TinyRadiographs) -> None:
    tiny.setup("fit")
    with pytest.raises(ValueError, match="needs a datamodule to train"):
        _engine(tmp_path).fit(AnatPaste(**SMALL), train_dataloaders=tiny.train_dataloader())
