"""Whole AutoEncoder runs: a linear one is a PCA, runs repeat, checkpoints keep what was learnt, a spot is found."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from tiny_radiographs import TinyRadiographs
from torch import Tensor, nn

from anomalib_cxr.models import AutoEncoder
from anomalib_cxr.models.auto_encoder import lightning_model
from anomalib_cxr.models.components.reconstruction.bottlenecks import Coded
from anomalib_cxr.models.components.reconstruction.reconstructor import Reconstructor

SMALL: dict[str, Any] = {"image_size": 32, "width": 4, "hidden_size": 16, "seed": 3}
QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}


def train(model: AutoEncoder, films: Tensor, batch_size: int) -> None:
    """Its loss, optimiser and rate, without Lightning."""
    optimizer, scheduler = model.configure_optimizers().values()
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(model.max_steps):
        chosen = torch.randperm(len(films), generator=generator)[:batch_size]
        loss = sum(model.model.losses(films[chosen], generator).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler["scheduler"].step()


class NoBottleneck(nn.Module):
    def forward(self, features: Tensor, generator: torch.Generator | None = None) -> Coded:
        return Coded(features, features, {})


def test_a_linear_autoencoder_reaches_the_trailing_eigenvalues_of_a_pca() -> None:
    """Network, loss, optimiser, schedule and score at once: nothing but the principal subspace errs so little."""
    side, latent = 32, 3
    rng = np.random.default_rng(0)
    patterns = np.linalg.qr(rng.normal(size=(side**2, 6)))[0].T * side
    amounts = np.linalg.qr(rng.normal(size=(8, 6)))[0] * [0.8, 0.7, 0.6, 0.3, 0.2, 0.1]
    flat = np.concatenate([amounts @ patterns, -(amounts @ patterns)])  # each with its negative: the mean is 0
    films = torch.from_numpy((flat + 1) / 2).float().reshape(-1, 1, side, side)
    gentle = {"optimizer": "momentum", "learning_rate": 2.0, "max_steps": 150}
    model = AutoEncoder(image_size=side, relative_map="none", top_q=1.0, seed=0, **gentle)
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(side**2, latent, bias=False))
    decoder = nn.Sequential(nn.Linear(latent, side**2, bias=False), nn.Unflatten(1, (1, side, side)))
    with torch.no_grad():
        decoder[0].weight.copy_(encoder[1].weight.T)
    model.model.network = Reconstructor(encoder, NoBottleneck(), decoder)
    train(model, films, len(films))
    with torch.no_grad():
        found = float(model.model.eval()(films).pred_score.mean()) * side**2
    values = PCA().fit(flat).explained_variance_ * (len(flat) - 1) / len(flat)
    trailing = values[latent:].sum()
    assert 0.02 < trailing / values.sum() < 0.3
    assert found >= trailing * (1 - 1e-4)
    assert found == pytest.approx(trailing, rel=0.01)


def _engine(root: Path) -> Engine:
    return Engine(default_root_dir=root, **QUIET)


@pytest.mark.parametrize(
    "arguments",
    [
        {"variant": "vae", "score": "code_norm", "hidden_size": 16},
        {"variant": "context", "error": "perceptual", "hidden_size": 16, "backbone": "test_resnet"},
        pytest.param({"variant": "dae", "error": "ssim"}, marks=pytest.mark.slow),
        pytest.param(
            {"variant": "memory", "error": "uncertainty", "network": "pix2pixhd", "hidden_size": 16},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda arguments: arguments["variant"],
)
def test_runs_repeat_and_checkpoints_keep_what_was_learnt(
    tmp_path: Path, tiny_root: Path, arguments: dict[str, Any]
) -> None:
    given = {"image_size": 32, "width": 4, "pre_trained": False, "seed": 3, "max_steps": 2, "steps_per_epoch": 2}
    models = []
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # whatever went before
        models.append(get_model("auto_encoder", **given | arguments))
        data = TinyRadiographs(tiny_root)
        _engine(tmp_path / name).fit(models[-1], datamodule=data)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    (checkpoint,) = (tmp_path / "first").rglob("model.ckpt")
    fresh = AutoEncoder.load_from_checkpoint(checkpoint).eval()
    images = torch.stack([data.test_data[number].image for number in range(8)])
    with torch.no_grad():
        kept, found = fresh.model(images), models[0].model.eval()(images)
    assert torch.equal(kept.pred_score, found.pred_score)
    assert torch.equal(kept.anomaly_map, found.anomaly_map)
    assert len(found.pred_score.unique()) == 8


def test_the_spot_is_found_and_seen_after_sixty_steps(tiny_root: Path) -> None:
    data = TinyRadiographs(tiny_root)
    data.setup()
    films = torch.stack([item.image for item in data.train_data])
    asked = [data.test_data[number] for number in range(len(data.test_data))]
    labels = [int(item.gt_label) for item in asked]
    model = AutoEncoder(latent_size=4, hidden_size=64, learning_rate=3e-3, max_steps=60, seed=0)
    train(model, films, 4)
    with torch.no_grad():
        model.model.eval().fit(model.model.errors(films)[0])
        found = model.model(torch.stack([item.image for item in asked]))
    assert roc_auc_score(labels, found.pred_score) >= 0.9
    # The spot lies in the left lung: rows and columns of its middle.
    abnormal = found.anomaly_map[torch.tensor(labels, dtype=torch.bool), 0]
    rows, columns = zip(*(divmod(int(one.argmax()), 64) for one in abnormal), strict=True)
    hits = [20 <= row < 44 and 10 <= column < 28 for row, column in zip(rows, columns, strict=True)]
    assert sum(hits) >= 0.75 * len(hits)


def test_the_bank_is_of_evenly_spread_normal_films(
    tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_model, "_NORMAL_FILMS", 5)  # of twelve: every third
    model, data = AutoEncoder(**SMALL, max_steps=1), TinyRadiographs(tiny_root)
    _engine(tmp_path).fit(model, datamodule=data)
    films = torch.stack([data.train_data[number].image for number in (0, 3, 6, 9)])
    with torch.no_grad():
        errors = model.model.eval().errors(films)[0].double().numpy()
    bank = model.model.scoring.normal_map
    np.testing.assert_allclose(bank.mean.numpy(), errors.mean(axis=0), rtol=1e-4, atol=1e-6)
    deviation = errors.std(axis=0, ddof=1)
    np.testing.assert_allclose(bank.scale.numpy(), deviation + 0.1 * deviation.mean(), rtol=1e-3, atol=1e-6)


def test_a_loss_that_is_no_number_is_named_with_its_step(tmp_path: Path, tiny_root: Path) -> None:
    model = AutoEncoder(**SMALL, variant="vae", max_steps=3, steps_per_epoch=3)
    stock = model.training_loss

    def spoilt(batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        if model.steps_trained == 1:
            with torch.no_grad():
                model.model.network.bottleneck.squeeze[-1].bias[-1] = math.inf
        return stock(batch, generator)

    model.training_loss = spoilt
    with pytest.raises(RuntimeError, match=r"The loss term (reconstruction|kl) is (nan|inf) at step 1"):
        _engine(tmp_path).fit(model, datamodule=TinyRadiographs(tiny_root))


def test_a_code_that_says_nothing_is_warned_of(tmp_path: Path, tiny_root: Path, caplog: Any) -> None:
    model = AutoEncoder(**SMALL, variant="vae", latent_size=6, max_steps=1)
    codes = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 0.05, 0.05, 0, 0])
    model._look_at_codes(codes)
    assert "2 of the code's 6 numbers differ from film to film" in caplog.text
    caplog.clear()
    model._look_at_codes(codes + codes.roll(2, dims=1))
    assert not caplog.text


def test_one_film_a_batch_is_refused(tmp_path: Path, tiny_root: Path) -> None:
    data = TinyRadiographs(tiny_root)
    data.train_batch_size = 1
    with pytest.raises(ValueError, match="set the datamodule's train_batch_size to 2 or more"):
        _engine(tmp_path).fit(AutoEncoder(**SMALL, max_steps=1), datamodule=data)
