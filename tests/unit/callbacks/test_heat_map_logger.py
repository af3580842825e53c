"""What loggers receive: pictures whose pixels are known, and metrics of scikit-learn."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.engine import Engine
from grey_films import GREYS, GreyFilms, GreyModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from sklearn import metrics as sk

from anomalib_cxr.callbacks import HeatMapLogger
from anomalib_cxr.imaging import blend_heat_map, heat_map_picture
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor

TEST_GREYS = [*GREYS["test", "normal"], *GREYS["test", "abnormal"]]
TEST_LABELS = [0] * 3 + [1] * 4


class Ramp(torch.nn.Module):
    """Score: mean grey in 0 … 255. Map: that grey times a ramp from left to right."""

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        grey = 255 * images.mean(dim=(1, 2, 3))
        ramp = torch.linspace(0, 1, images.shape[-1]).expand(images.shape[-2:])
        return InferenceBatch(pred_score=grey, anomaly_map=(grey[:, None, None] * ramp)[:, None])


class RampModel(GreyModel):
    def __init__(self) -> None:
        super().__init__(post_processor=RankPreservingPostProcessor(pixel_quantile=0.5))
        self.model = Ramp()


def run(root: Path, loggers: Any, **kwargs: Any) -> tuple[GreyModel, HeatMapLogger]:
    """Validate, so that there are thresholds, and test."""
    model, callback = RampModel(), HeatMapLogger(**kwargs)
    common = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "barebones": False}
    common.pop("barebones")
    data = GreyFilms(root / "data")
    Engine(default_root_dir=root / "val", logger=False, **common).validate(model, datamodule=data)
    Engine(default_root_dir=root / "test", logger=loggers, callbacks=[callback], **common).test(model, datamodule=data)
    return model, callback


@pytest.fixture(autouse=True)
def _without_outlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Films of 8 pixels would be nothing but outline."""
    monkeypatch.setitem(heat_map_picture.__globals__, "draw_outlines", lambda *_: None)


def shown(picture: np.ndarray) -> np.ndarray:
    """Film and map of a picture: to the right is the bar, below are the lines."""
    return np.concatenate([picture[:8, :8], picture[:8, 12:20]], axis=1).astype(int)


def expected_picture(model: GreyModel, grey: int) -> np.ndarray:
    """Film beside its map, normalised by the formula of the post-processor."""
    p = model.post_processor
    heat = grey * np.linspace(0, 1, 8) * np.ones((8, 1))
    low, high, threshold = (float(x) for x in (p.pixel_min, p.pixel_max, p.pixel_threshold))
    z = 4 * (heat - threshold) / (high - low)
    film = np.full((8, 8), grey / 255, np.float32)
    right = blend_heat_map(film, 0.5 * (1 + z / (1 + np.abs(z))))
    return np.concatenate([np.full((8, 8, 3), grey, np.uint8), right], axis=1)


def test_tensorboard_holds_the_pictures_pixel_for_pixel_and_the_metrics(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model, _ = run(tmp_path, TensorBoardLogger(tmp_path / "tb", name="", version=""), per_label=2)
    events = accumulators.EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = [f"heat_maps/test/{label}/{n:02d}_{label}_{n}.png" for label in ("abnormal", "normal") for n in (0, 1)]
    assert sorted(events.Tags()["images"]) == tags
    for tag in tags:
        (event,) = events.Images(tag)
        image = Image.open(Path(_saved(tmp_path, event.encoded_image_string)))
        grey = GREYS["test", tag.split("/")[2]][int(tag[-5])]
        assert np.abs(shown(np.array(image)) - expected_picture(model, grey)).max() <= 1
    scalars = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    called = [grey > float(model.post_processor.image_threshold) for grey in TEST_GREYS]
    assert scalars["test/AUROC"] == pytest.approx(sk.roc_auc_score(TEST_LABELS, TEST_GREYS))
    assert scalars["test/AUPR"] == pytest.approx(sk.average_precision_score(TEST_LABELS, TEST_GREYS))
    assert scalars["test/sensitivity"] == pytest.approx(sk.recall_score(TEST_LABELS, called))
    assert scalars["test/F1"] == pytest.approx(sk.f1_score(TEST_LABELS, called))


def _saved(folder: Path, data: bytes) -> Path:
    path = folder / "event.png"
    path.write_bytes(data)
    return path


class Recorder(Logger):
    """A logger of no known kind."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}
        self.images: dict[str, np.ndarray] = {}

    name = "recorder"
    version = "0"
    experiment = SimpleNamespace()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics |= metrics

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class LikeWandb(Recorder):
    """As Lightning's WandbLogger: ``log_image(key, images, step, **kwargs)``, images in a list."""

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        assert isinstance(images, list)
        assert step is not None
        (self.images[key],) = images


class LikeMlflow(Recorder):
    """As Lightning's MLFlowLogger: ``experiment`` is a client, ``log_image(run_id, image, artifact_file)``."""

    run_id = "run-7"

    @property
    def experiment(self) -> Any:  # type: ignore[override]
        def log_image(run_id: str, image: Any, artifact_file: str | None = None) -> None:
            assert run_id == "run-7"
            assert artifact_file
            assert artifact_file.endswith("_step_000000.png")
            self.images[artifact_file.removesuffix("_step_000000.png")] = image

        return SimpleNamespace(log_image=log_image)


@pytest.mark.parametrize("kind", [LikeWandb, LikeMlflow])
def test_wandb_and_mlflow_receive_the_same(tmp_path: Path, kind: type[Recorder]) -> None:
    like = kind()
    model, _ = run(tmp_path, like, per_label=1)
    assert set(like.images) == {"heat_maps/test/normal/00_normal_0.png", "heat_maps/test/abnormal/00_abnormal_0.png"}
    for label in ("normal", "abnormal"):
        sent = like.images[f"heat_maps/test/{label}/00_{label}_0.png"]
        assert sent.dtype == np.uint8
        assert np.abs(shown(sent) - expected_picture(model, GREYS["test", label][0])).max() <= 1
    assert like.metrics["test/AUROC"] == pytest.approx(sk.roc_auc_score(TEST_LABELS, TEST_GREYS))


@pytest.mark.filterwarnings("ignore::Warning")  # of its own packages
def test_wandb_itself_receives_pictures_and_metrics_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs pip install wandb")
    from lightning.pytorch.loggers import WandbLogger

    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    real = WandbLogger(project="films", save_dir=tmp_path, offline=True)
    try:
        model, _ = run(tmp_path, real, per_label=1)
        assert real.experiment.summary["test/AUROC"] == pytest.approx(sk.roc_auc_score(TEST_LABELS, TEST_GREYS))
        media = Path(real.experiment.dir) / "media" / "images"
        assert len(list(media.rglob("*.png"))) == 2
        for label in ("normal", "abnormal"):
            (picture,) = (media / "heat_maps" / "test" / label).glob(f"00_{label}_0.png_*.png")
            expected = expected_picture(model, GREYS["test", label][0])
            assert np.abs(shown(np.array(Image.open(picture))) - expected).max() <= 1
    finally:
        wandb.finish()


@pytest.mark.filterwarnings("ignore::Warning")  # of its own packages
def test_mlflow_itself_receives_pictures_and_metrics_in_sqlite(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs pip install mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    real = MLFlowLogger("films", tracking_uri=store, artifact_location=(tmp_path / "artifacts").as_uri())
    model, _ = run(tmp_path, real, per_label=1)
    client = mlflow.MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])
    assert found.data.metrics["test/AUROC"] == pytest.approx(sk.roc_auc_score(TEST_LABELS, TEST_GREYS))
    for label in ("normal", "abnormal"):
        name = f"heat_maps/test/{label}/00_{label}_0.png_step_000000.png"
        picture = client.download_artifacts(found.info.run_id, name, str(tmp_path))
        expected = expected_picture(model, GREYS["test", label][0])
        assert np.abs(shown(np.array(Image.open(picture))) - expected).max() <= 1


def test_a_fit_sends_its_validation_normalised_by_what_it_has_just_learned(tmp_path: Path) -> None:
    like, model = LikeWandb(), RampModel()
    Engine(
        default_root_dir=tmp_path, accelerator="cpu", devices=1, enable_progress_bar=False, logger=like,
        callbacks=[HeatMapLogger(per_label=1)],
    ).fit(model, datamodule=GreyFilms(tmp_path / "data"))  # fmt: skip
    sent = like.images["heat_maps/validation/abnormal/00_abnormal_0.png"]
    assert np.abs(shown(sent) - expected_picture(model, GREYS["val", "abnormal"][0])).max() <= 1
    greys, labels = [*GREYS["val", "normal"], *GREYS["val", "abnormal"]], [0] * 4 + [1] * 3
    assert like.metrics["validation/AUROC"] == pytest.approx(sk.roc_auc_score(labels, greys))


def test_a_logger_without_pictures_gets_the_metrics_and_is_named(tmp_path: Path, caplog) -> None:
    with caplog.at_level("WARNING"):
        run(tmp_path, CSVLogger(tmp_path / "csv", name="", version=""))
    assert "CSVLogger takes no pictures: it gets the metrics alone." in caplog.text
    assert "test/AUROC" in (tmp_path / "csv" / "metrics.csv").read_text()


def test_no_logger_is_said(tmp_path: Path, caplog) -> None:
    with caplog.at_level("WARNING"):
        run(tmp_path, False)
    assert "HeatMapLogger has nothing to send to" in caplog.text


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="per_label of 0 or more"):
        HeatMapLogger(per_label=-1)
    with pytest.raises(ValueError, match="side of 32 or more, got 8 and 31"):
        HeatMapLogger(side=31)
    with pytest.raises(ValueError, match="names must be one of 'path', 'hash'"):
        HeatMapLogger(names="none")  # type: ignore[arg-type]
