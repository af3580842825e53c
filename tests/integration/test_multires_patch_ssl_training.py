"""Whole MultiResPatchSSL runs on a tiny drawn set: reproducible, resumable, the chosen bank, faults."""

import math
from pathlib import Path

import pytest
import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.augmentations.pose_and_exposure import pose_and_expose
from anomalib_cxr.models import MultiResPatchSSL

SMALL = {
    "image_size": 64,
    "patch_sizes": (16, 32),
    "encoder_size": 16,
    "backbone": "resnet10t",
    "patches_per_step": 12,
    "max_steps": 4,
    "steps_per_epoch": 2,
    "feature_dim": 8,
    "bank_dtype": "float32",
    "seed": 3,
}


def _engine(root: Path) -> Engine:
    return Engine(default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False)


def _fit(root: Path, data: TinyRadiographs, ckpt_path: Path | None = None, **kwargs) -> tuple[MultiResPatchSSL, Engine]:
    model, engine = MultiResPatchSSL(**(SMALL | kwargs)), _engine(root)
    engine.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, engine


def _weights(root: Path) -> Path:
    (folder,) = root.glob("MultiResPatchSSL/*/latest/weights/lightning")
    return folder


def test_resumed_run_equals_unbroken(tmp_path: Path, tiny_root: Path) -> None:
    unbroken, _ = _fit(tmp_path / "unbroken", TinyRadiographs(tiny_root), checkpoint="last")
    # The same schedule, stopped half-way: warm-up and cosine are those of four steps.
    half = MultiResPatchSSL(**SMALL, checkpoint="last")
    engine = Engine(
        default_root_dir=tmp_path / "half", accelerator="cpu", devices=1, enable_progress_bar=False, max_time=None
    )
    half.max_steps = 2
    half.rate_at = lambda step: MultiResPatchSSL.rate_at(unbroken, step)
    engine.fit(half, datamodule=TinyRadiographs(tiny_root))
    resumed, engine = _fit(
        tmp_path / "resumed",
        TinyRadiographs(tiny_root),
        ckpt_path=_weights(tmp_path / "half") / "model.ckpt",
        checkpoint="last",
    )
    assert engine.trainer.global_step == 4
    a, b = unbroken.state_dict(), resumed.state_dict()
    assert max((a[key].double() - b[key].double()).abs().max().item() for key in a if a[key].numel()) < 1e-6


def test_printed_auroc_belongs_to_the_checkpoint_and_its_banks(tmp_path: Path, tiny_root: Path) -> None:
    model, engine = MultiResPatchSSL(**SMALL), _engine(tmp_path)
    (printed,) = engine.train(model, datamodule=TinyRadiographs(tiny_root))
    fresh = MultiResPatchSSL.load_from_checkpoint(_weights(tmp_path) / "model.ckpt")
    (again,) = _engine(tmp_path / "again").test(fresh, datamodule=TinyRadiographs(tiny_root))
    assert again == pytest.approx(printed)


def test_training_moves_every_encoder_and_frozen_none(tmp_path: Path, tiny_root: Path) -> None:
    before = MultiResPatchSSL(**SMALL).model.encoders.state_dict()
    trained, _ = _fit(tmp_path / "trained", TinyRadiographs(tiny_root), learning_rate=1.0)
    after = trained.model.encoders.state_dict()
    for size in ("0.", "1."):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(size) and k.endswith("weight"))
    frozen, _ = _fit(tmp_path / "frozen", TinyRadiographs(tiny_root), max_steps=0)
    kept = frozen.model.encoders.state_dict()
    assert all(torch.equal(before[key], kept[key]) for key in before)
    assert all(bank.search.is_fitted for bank in frozen.model.banks)


class Watch(Callback):
    """Notes the rate of each group and the first weights of each size after every step."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, ...]] = []
        self.weights: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        del args
        self.rates.append(tuple(group["lr"] for group in trainer.optimizers[0].param_groups))
        self.weights.append([next(encoder.parameters()).detach().clone() for encoder in pl_module.model.encoders])


def test_each_size_is_trained_for_its_epochs(tmp_path: Path, tiny_root: Path) -> None:
    """12 images of 64²: 192 patches of 16 pixels and 48 of 32, 12 a step: 16 and 4 steps an epoch."""
    watch = Watch()
    arguments = SMALL | {"epochs": 1, "max_steps": None, "steps_per_epoch": None, "learning_rate": 0.5}
    model = MultiResPatchSSL(**arguments)
    engine = Engine(
        default_root_dir=tmp_path, accelerator="cpu", devices=1, enable_progress_bar=False, callbacks=[watch]
    )
    engine.fit(model, datamodule=TinyRadiographs(tiny_root))
    assert (model.max_steps, engine.trainer.global_step) == (16, 16)

    def rate(step: int, length: int) -> float:
        warmup = length // 10
        if step >= length:
            return 0.0
        if step < warmup:
            return 0.5 * (step + 1) / warmup
        return 0.25 * (1 + math.cos(math.pi * (step - warmup) / (length - warmup)))

    # Groups of a size: biases and scales, then what decays. What is noted is the rate of the step to come.
    for step, found in enumerate(watch.rates, start=1):
        assert found == pytest.approx((rate(step, 16),) * 2 + (rate(step, 4),) * 2)
    for step, (fine, coarse) in enumerate(watch.weights):
        assert torch.equal(coarse, watch.weights[3][1]) == (step >= 3)
        assert step == 0 or not torch.equal(fine, watch.weights[step - 1][0])
    fresh = MultiResPatchSSL.load_from_checkpoint(_weights(tmp_path) / "model.ckpt")
    assert (fresh.epochs, fresh.hparams["max_steps"]) == (1, None)


def test_steps_with_fewer_patches_than_asked_for_are_warned_of(tmp_path: Path, tiny_root: Path, caplog) -> None:
    _fit(tmp_path, TinyRadiographs(tiny_root), max_steps=2, patches_per_step=20)
    assert "A step trains 16 patches of 32 pixels and not patches_per_step=20" in caplog.text
    assert "have no more: 5 images would" in caplog.text
    assert "patches of 16 pixels and not" not in caplog.text


def test_held_out_normals_are_hardly_marked(tmp_path: Path, tiny_root: Path) -> None:
    data = TinyRadiographs(tiny_root)  # labels only, no masks
    model, engine = _fit(tmp_path, data)
    for part, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = engine.predict(model, dataloaders=loader)
        masks, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("pred_mask", "gt_label"))
        marked = float(masks[~labels.bool()].float().mean())
        assert marked < 0.2
        assert marked > 0 or part == "test"  # the threshold is a quantile of these maps
    assert (len(labels), int(labels.sum())) == (24, 12)


def test_faults_name_themselves(tmp_path: Path, tiny_root: Path) -> None:
    with pytest.raises(RuntimeError, match=r"The loss term 16 is nan at step \d+"):
        _fit(tmp_path, TinyRadiographs(tiny_root), learning_rate=1e30, optimizer="sgd", warmup_steps=0)
    with pytest.raises(ValueError, match=r"above max_bank_gib=1e-06"):
        _fit(tmp_path, TinyRadiographs(tiny_root), max_bank_gib=1e-6)
    with pytest.raises(ValueError, match="larger than image_size=64"):
        MultiResPatchSSL(**(SMALL | {"patch_sizes": (128,)}))
    with pytest.raises(ValueError, match="patches_per_step must be at least 2"):
        MultiResPatchSSL(**(SMALL | {"patches_per_step": 1}))


def test_banks_hold_each_image_in_other_poses_too_and_learn_whitening_from_all(tmp_path: Path, tiny_root: Path) -> None:
    given = {"max_steps": 0, "steps_per_epoch": None, "distance": "whitened_cosine", "feature_dim": 0, "seed": 7}
    data = TinyRadiographs(tiny_root)
    plain, _ = _fit(tmp_path / "plain", data, **given)
    model, _ = _fit(tmp_path / "views", data, **given, bank_views=2, view_strength=0.5)
    plain, model = plain.eval(), model.eval()
    n = len(data.train_data)
    images = torch.stack([data.train_data[i].image for i in range(n)])
    draws = torch.rand(n, 10, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    looks = [images, pose_and_expose(images, draws[:, :5], 0.5), pose_and_expose(images, draws[:, 5:], 0.5)]
    with torch.no_grad():
        features = [torch.cat(size) for size in zip(*map(plain.model.features, looks), strict=True)]
    banks = zip(model.model.reference_banks(), features, model.model.score_mean, strict=True)
    for bank, found, typical in banks:
        own, _ = bank(found[:n], torch.arange(n))  # the statistics are those of images as they are
        torch.testing.assert_close(typical, own.mean(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(
            bank.search.centre.double(), found.double().mean(dim=(0, 1, 2)), rtol=1e-4, atol=1e-5
        )
        expected = bank.search.to_bank_space(found).permute(1, 2, 0, 3)
        torch.testing.assert_close(bank.search.references, expected, rtol=1e-4, atol=1e-4)
        assert bank.search.image_index[0, 0].tolist() == [*range(n)] * 3
    # An image may not match an altered copy of itself where the statistics are made.
    assert (model.model.score_mean > 0.5 * plain.model.score_mean).all()
    with torch.no_grad():
        nearer, farther = (one.model.maps(looks[2][:1]).mean() for one in (model, plain))
    assert nearer < 0.01 * farther
    size = len(model.model.reference_banks()[0].search.image_index[0, 0])
    model.extend_bank(images[:2] * 0.9)
    assert len(model.model.reference_banks()[0].search.image_index[0, 0]) == size + 3 * 2


def test_impossible_views_are_refused() -> None:
    for given, message in (({"bank_views": -1}, "bank_views must be"), ({"view_strength": -0.1}, "view_strength must")):
        with pytest.raises(ValueError, match=message):
            MultiResPatchSSL(**SMALL, **given)
