"""What was exported from a checkpoint gives the numbers of the Lightning model, from the image to the decision."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pandas as pd
import pytest
import tiny_encoders  # noqa: F401  # names its models in timm
import torch
import yaml
from anomalib.data import ImageBatch, ImageItem
from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine
from one_trace import one_trace
from PIL import Image
from torch.utils.data import DataLoader

import anomalib_cxr.models
from anomalib_cxr.callbacks.film_assessor import FilmAssessor
from anomalib_cxr.data import RadiographDataModule
from anomalib_cxr.deploy import ExportedDetector, read_metadata
from anomalib_cxr.models import (
    SQUID,
    AlphaGAN,
    AnatPaste,
    AutoEncoder,
    DeepSVDD,
    Ensemble,
    FAnoGAN,
    FeatureDensity,
    FeatureDistillation,
    MultiResPatchSSL,
    PatchSVDD,
    PoissonInterpolation,
)
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor

N_IMAGES, SIDE, REFERENCES = 200, 64, 50
TOLERANCE = 1e-4

MODELS: dict[str, Any] = {
    "AlphaGAN": lambda: AlphaGAN(max_steps=20, steps_per_epoch=20, width=4, image_size=SIDE, seed=3),
    "AnatPaste": lambda: AnatPaste(
        image_size=SIDE, max_steps=20, steps_per_epoch=20, backbone="resnet10t", num_workers=0, seed=3
    ),
    "local": lambda: AnatPaste(
        preset="best", image_size=SIDE, max_steps=5, steps_per_epoch=5, backbone="resnet10t", num_workers=0, seed=3
    ),
    "AutoEncoder": lambda: AutoEncoder(max_steps=60, steps_per_epoch=60, learning_rate=3e-3, image_size=SIDE, seed=3),
    "FAnoGAN": lambda: FAnoGAN(max_steps=15, steps_per_epoch=15, width=4, image_size=SIDE, patch_size=32, seed=3),
    "DeepSVDD": lambda: DeepSVDD(image_size=SIDE, max_steps=4, steps_per_epoch=4, pretraining_steps=1, seed=3),
    "FeatureDensity": lambda: FeatureDensity(
        image_size=SIDE, cell_size=16, backbone="tiny_vit", pre_trained=False, seed=3
    ),
    "FeatureDistillation": lambda: FeatureDistillation(
        image_size=SIDE,
        teacher="test_efficientnet",
        pre_trained=False,
        max_steps=20,
        seed=3,
        post_processor=RankPreservingPostProcessor(threshold_rule="mid_range"),  # F1's calls nearly all abnormal
    ),
    "MultiResPatchSSL": lambda: MultiResPatchSSL(
        image_size=SIDE,
        patch_sizes=(16, 32),
        encoder_size=16,
        shared_encoder=True,
        feature_dim=8,
        patches_per_step=12,
        max_steps=2,
        steps_per_epoch=2,
        seed=3,
    ),
    "PatchSVDD": lambda: PatchSVDD(image_size=SIDE, patch_sizes=(32,), width=4, max_steps=2, seed=3),
    "PoissonInterpolation": lambda: PoissonInterpolation(
        image_size=SIDE, max_steps=20, steps_per_epoch=20, backbone="resnet10t", num_workers=0, seed=3
    ),
    "SQUID": lambda: SQUID(
        width=2,
        slots=20,
        max_steps=40,
        steps_per_epoch=40,
        learning_rate=1e-2,
        seed=3,
        post_processor=RankPreservingPostProcessor(threshold_rule="mid_range"),  # F1's calls all abnormal
    ),
    "frozen": lambda: MultiResPatchSSL(
        preset="best",
        backbone=["resnet10t", "tiny_vit"],
        pre_trained=False,
        image_size=SIDE,
        patch_sizes=(16, 16),
        seed=3,
    ),
}

#: Names of models; those whose many layers take long to trace are slow tests.
MARKED = [pytest.param(name, marks=pytest.mark.slow) if name in {"SQUID"} else name for name in sorted(MODELS)]

#: Checkpoint, ONNX and OpenVINO file, each made from the checkpoint on disk, and the class of the model.
Exported = tuple[Path, Path, Path, Any]


def draw(side: int, seed: int, count: int = N_IMAGES, abnormal: bool | None = None) -> np.ndarray:
    """Draw lungs of varying shape in a frame at any size; abnormal ones, or every other, with a spot."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    images = []
    for i in range(count):
        width, height, middle = rng.uniform(0.11, 0.16), rng.uniform(0.25, 0.33), rng.uniform(0.45, 0.55)
        lungs = sum(((x - cx) / width) ** 2 + ((y - middle) / height) ** 2 < 1 for cx in (0.3, 0.7))
        image = rng.uniform(0.65, 0.85) - rng.uniform(0.4, 0.6) * (lungs > 0) + rng.normal(0, 0.03, x.shape)
        cy, cx = rng.uniform(0.4, 0.6), rng.uniform(0.25, 0.35)
        spot = rng.uniform(0.2, 0.9) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.006)
        image += spot * (i % 2 if abnormal is None else abnormal)
        images.append(image.clip(0, 1))
    return np.asarray(images, np.float32)


class DrawnFiles(RadiographDataModule):
    """Radiographs of :func:`draw` as 16-bit PNG."""

    def __init__(self, root: Path, side: int = SIDE) -> None:
        super().__init__(root=root, train_batch_size=8, eval_batch_size=8, num_workers=0)
        self.side = side

    def make_samples(self) -> pd.DataFrame:
        self.root.mkdir(parents=True, exist_ok=True)
        rows = []
        parts = [("train", False), ("val", False), ("val", True), ("test", False), ("test", True)]
        for seed, (split, abnormal) in enumerate(parts):
            for i, image in enumerate(draw(self.side, seed, REFERENCES if split == "train" else 20, abnormal)):
                path = self.root / f"{split}_{int(abnormal)}_{i}.png"
                Image.fromarray((image * 65535).astype(np.uint16)).save(path)
                label = "abnormal" if abnormal else "normal"
                row = {"image_path": str(path), "label": label, "split": split, "patient_id": path.stem}
                rows.append(row | {"findings": "", "mask_path": ""})
        return pd.DataFrame(rows)


class _Drawn(torch.utils.data.Dataset):
    """Drawn images as Anomalib's items."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageItem:
        return ImageItem(image=self.images[index].expand(3, -1, -1), image_path=f"{index}.png")


def engine(root: Path) -> Engine:
    # Which films are assessable is another test's: here each film would be looked at for nothing.
    quick = [FilmAssessor(most=0)]
    return Engine(
        default_root_dir=root, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=quick
    )


@pytest.fixture(scope="module")
def export_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Fit and export a model by name, once; the ensemble is of one of each kind."""

    @functools.cache
    def export(name: str) -> Exported:
        make = MODELS.get(name) or functools.partial(
            Ensemble, [str(export(member)[0]) for member in ("FeatureDensity", "frozen")], fusion="p_value"
        )
        return fit_and_export(make, tmp_path_factory.mktemp(name), SIDE)

    return export


@pytest.fixture(params=MARKED)
def exported(request: pytest.FixtureRequest, export_of: Callable[[str], Exported]) -> Exported:
    return export_of(request.param)


@pytest.fixture(params=[*MARKED, "Ensemble"])
def exported_or_ensemble(request: pytest.FixtureRequest, export_of: Callable[[str], Exported]) -> Exported:
    return export_of(request.param)


def fit_and_export(make: Callable[[], Any], root: Path, side: int) -> Exported:
    model = make()
    engine(root).fit(model, datamodule=DrawnFiles(root / "data", side))
    (checkpoint,) = root.rglob("model.ckpt")
    with one_trace():
        paths = [
            engine(root).export(make(), kind, export_root=root / "export", ckpt_path=checkpoint)
            for kind in (ExportType.ONNX, ExportType.OPENVINO)
        ]
    return checkpoint, *paths, type(model)


def lightning_predictions(checkpoint: Path, model_class: Any, images: np.ndarray, root: Path) -> dict[str, np.ndarray]:
    model = model_class.load_from_checkpoint(checkpoint, visualizer=False)
    loader = DataLoader(_Drawn(images), batch_size=8, collate_fn=ImageBatch.collate)
    batches = engine(root).predict(model, dataloaders=loader)
    return {
        "pred_score": torch.cat([batch.pred_score for batch in batches]).numpy(),
        "pred_label": torch.cat([batch.pred_label for batch in batches]).numpy(),
        # Anomalib's batches have no channel.
        "anomaly_map": torch.cat([batch.anomaly_map for batch in batches])[:, None].numpy(),
        "pred_mask": torch.cat([batch.pred_mask for batch in batches])[:, None].numpy(),
    }


def onnx_runtime(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda part: dict(zip(names, session.run(None, {"input": part}), strict=True))


def openvino_runtime(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(str(path), "CPU", config)
    return lambda part: {key.any_name: np.array(value) for key, value in model(part).items()}


def in_batches(
    runtime: Callable[[np.ndarray], dict[str, np.ndarray]], images: np.ndarray, batch: int
) -> dict[str, np.ndarray]:
    parts = [runtime(part) for part in _batches(images, batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _batches(images: np.ndarray, batch: int) -> list[np.ndarray]:
    colour = np.repeat(images[:, None], 3, axis=1)
    return [colour[i : i + batch] for i in range(0, len(colour), batch)]


@pytest.mark.parametrize("side", [SIDE, 2 * SIDE])
def test_exported_equals_lightning(exported_or_ensemble: Exported, tmp_path: Path, side: int) -> None:
    checkpoint, *paths, model_class = exported_or_ensemble
    images = draw(side, seed=100 + side, count=N_IMAGES if side == SIDE else N_IMAGES // 4)
    expected = lightning_predictions(checkpoint, model_class, images, tmp_path)
    # Both decisions, scores on both sides of the threshold, few tied: a saturated score would hide any deviation. What
    # tells interpolation after 20 steps is grain, which shrinking takes from every film alike.
    if model_class is not PoissonInterpolation or side == SIDE:
        assert 0.05 < expected["pred_label"].mean() < 0.95
        assert (abs(expected["pred_score"] - 0.5) < 0.4).mean() > 0.3
    assert len(np.unique(expected["pred_score"])) > 0.8 * len(images)
    compare(expected, images, *paths)


def compare(expected: dict[str, np.ndarray], images: np.ndarray, onnx_path: Path, openvino_path: Path) -> None:
    for make, path in ((onnx_runtime, onnx_path), (openvino_runtime, openvino_path)):
        runtime = make(path)
        for batch, count in ((1, N_IMAGES // 5), (8, N_IMAGES)):
            found = in_batches(runtime, images[:count], batch)
            reference = {name: values[:count] for name, values in expected.items()}
            for name in ("pred_score", "anomaly_map"):
                deviation = np.abs(found[name] - reference[name]).max()
                print(f"{path.suffix} batch {batch} {name}: largest deviation {deviation:.1e}")
                assert deviation < TOLERANCE, f"{name} of {path.suffix} at batch {batch}"
            np.testing.assert_array_equal(found["pred_label"], reference["pred_label"])
            assert (found["pred_mask"] != reference["pred_mask"]).mean() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        "quickstart.yaml",
        "anatpaste/zhanglab.yaml",
        "anatpaste/zhanglab_cpu.yaml",
        "anatpaste/zhanglab_best.yaml",
        "auto_encoder/zhanglab.yaml",
        "deep_svdd/zhanglab.yaml",
        "patch_svdd/zhanglab.yaml",
        "poisson_interpolation/zhanglab.yaml",
        "multires_patch_ssl/quickstart.yaml",
        "multires_patch_ssl/zhanglab_cpu.yaml",
        "multires_patch_ssl/zhanglab_frozen_crops.yaml",
        "multires_patch_ssl/zhanglab_frozen_map.yaml",
        "multires_patch_ssl/zhanglab_best.yaml",
    ],
)
def test_shipped_configs(config: str, tmp_path: Path) -> None:
    """The models of the shipped configurations, trained for a few steps only and from random weights."""
    path = Path(__file__).parents[2] / "configs" / config
    section = yaml.safe_load(path.read_text())["model"]
    model_class = getattr(anomalib_cxr.models, section["class_path"].split(".")[-1])
    length = section["init_args"].get("max_steps", 0 if section["init_args"].get("preset") == "best" else 2)
    # Batch normalisation needs some steps before a short training embeds anything at all.
    steps = 20 if model_class in (AnatPaste, PoissonInterpolation) else min(length, 2)
    arguments = section["init_args"] | {"pre_trained": False, "max_steps": steps, "steps_per_epoch": max(1, steps)}
    side = model_class(**arguments).input_size[0]
    checkpoint, *paths, _ = fit_and_export(lambda: model_class(**arguments), tmp_path, side)
    for factor in (1, 2):
        images = draw(factor * side, seed=factor)
        expected = lightning_predictions(checkpoint, model_class, images, tmp_path)
        print(config, "scores", np.quantile(expected["pred_score"], [0, 0.1, 0.5, 0.9, 1]).round(3))
        compare(expected, images, *paths)


def test_our_inferencer_equals_lightning(exported_or_ensemble: Exported, tmp_path: Path) -> None:
    checkpoint, *paths, model_class = exported_or_ensemble
    images = draw(100, seed=99, count=40)
    expected = lightning_predictions(checkpoint, model_class, images, tmp_path)
    for path, batch in zip(paths, (1, 8), strict=True):
        found = ExportedDetector(path, threads=1, batch_size=batch).predict(list(images))
        np.testing.assert_allclose([f.score for f in found], expected["pred_score"], rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal([f.abnormal for f in found], expected["pred_label"])
        heat_maps = np.stack([f.heat_map for f in found])
        np.testing.assert_allclose(heat_maps, expected["anomaly_map"][:, 0], rtol=0, atol=TOLERANCE)


def test_metadata_is_that_of_the_checkpoint(exported: Exported) -> None:
    checkpoint, *paths, model_class = exported
    state = torch.load(checkpoint, weights_only=True)
    for path in paths:
        metadata = read_metadata(path)
        assert metadata["model"] == model_class.__name__
        assert metadata["config"]["image_size"] == SIDE
        assert metadata["input_size"] == [SIDE, SIDE]
        assert (
            metadata["split_sha256"] == state["split_sha256"] == DrawnFiles(checkpoint.parents[5] / "data").split_hash
        )
        buffers = state["state_dict"]
        assert metadata["thresholds"]["image"] == buffers["post_processor._image_threshold"].item()
        assert metadata["thresholds"]["pixel"] == buffers["post_processor._pixel_threshold"].item()
        assert metadata["normalisation"]["pixel_max"] == buffers["post_processor.pixel_max"].item()
        banks = {name: bank["shape"] for name, bank in metadata["banks"].items()}
        assert banks == {
            name.removeprefix("model."): list(buffer.shape)
            for name, buffer in buffers.items()
            if name.endswith("references")
        }
        assert not banks or any(REFERENCES in shape for shape in banks.values())
        assert metadata["weights"]["file"] in {"model.onnx.data", "model.bin"}


def test_old_opset_and_too_large_a_file_are_refused(exported: Exported, tmp_path: Path) -> None:
    checkpoint, *_, model_class = exported
    model = model_class.load_from_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="opset_version must be at least 18, not 14"):
        model.to_onnx(tmp_path, opset_version=14)
    with pytest.raises(ValueError, match=r"would take [\d.]+ MiB, above max_gib=0.0001"):
        model.to_openvino(tmp_path, onnx_kwargs={"max_gib": 0.0001})
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.slow
def test_compressed_models_rank_alike(exported: Exported, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    checkpoint, onnx_path, _, model_class = exported
    images = draw(SIDE, seed=5, count=60)
    exact = np.array([p.score for p in ExportedDetector(onnx_path, threads=1).predict(list(images))])
    data = DrawnFiles(tmp_path / "data")
    sizes = {}
    for kind in (None, CompressionType.FP16, CompressionType.INT8, CompressionType.INT8_PTQ):
        path = engine(tmp_path).export(
            model_class.load_from_checkpoint(checkpoint),
            ExportType.OPENVINO,
            export_root=tmp_path / str(kind),
            compression_type=kind,
            datamodule=data,
            ckpt_path=checkpoint,
        )
        assert read_metadata(path)["compression"] == (kind.value if kind else None)
        found = np.array([p.score for p in ExportedDetector(path, threads=1).predict(list(images))])
        sizes[kind] = path.with_suffix(".bin").stat().st_size
        ranks = [np.argsort(np.argsort(scores)) for scores in (exact, found)]
        correlation = np.corrcoef(*ranks)[0, 1]
        print(kind, sizes[kind], "rank correlation", correlation.round(4))
        assert correlation > 0.9
    assert sizes[CompressionType.FP16] < 0.6 * sizes[None]
    assert sizes[CompressionType.INT8] < 0.4 * sizes[None]
