"""What Anomalib's own integration tests do to its built-in models, done to ours.

Its ``tests/integration/model/test_models.py``: fit, then from the checkpoint test, train, validate, predict and export
to each type, on a dummy set in MVTec AD's layout with batches of 2, one epoch at most.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from anomalib.data import MVTecAD
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, get_model
from one_trace import one_trace

#: Anomalib's test limits its models by ``max_epochs=1``; ours take their length from ``max_steps`` alone.
SHORT: dict[str, dict[str, Any]] = {
    "alpha_gan": {"max_steps": 2, "steps_per_epoch": 2, "width": 4},
    "anat_paste": {"max_steps": 2, "steps_per_epoch": 2, "backbone": "resnet10t"},
    "auto_encoder": {"max_steps": 2, "steps_per_epoch": 2, "hidden_size": 32},
    "fano_gan": {"max_steps": 2, "steps_per_epoch": 2, "width": 4},
    "deep_svdd": {"max_steps": 2, "steps_per_epoch": 1, "image_size": 32},
    "feature_density": {"image_size": 64, "cell_size": 16, "backbone": "resnet10t", "pre_trained": False},
    "feature_distillation": {
        "max_steps": 2,
        "steps_per_epoch": 2,
        "image_size": 64,
        "teacher": "test_efficientnet",
        "pre_trained": False,
    },
    "multi_res_patch_ssl": {
        "max_steps": 2,
        "steps_per_epoch": 2,
        "image_size": 64,
        "patch_sizes": (16, 32),
        "encoder_size": 16,
        "feature_dim": 8,
        "shared_encoder": True,
    },
    "patch_svdd": {"max_steps": 2, "steps_per_epoch": 2, "image_size": 64, "patch_sizes": (32,), "width": 4},
    "poisson_interpolation": {"max_steps": 2, "steps_per_epoch": 2, "image_size": 64, "backbone": "resnet10t"},
    "squid": {"max_steps": 2, "steps_per_epoch": 2, "image_size": 64, "width": 2, "slots": 8},
}


def draw_mvtec(root: Path) -> Path:
    """Draw 8 images of a normal colour pattern for training, 8 + 8 for testing, the bad ones with a masked shape."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256] / 256
    for split, label in (("train", "good"), ("test", "good"), ("test", "bad")):
        for i in range(8):
            waves = np.stack([np.sin(8 * (x * (c + 1) + y) + rng.uniform(0, 1)) for c in range(3)], axis=-1)
            image = (127 + 60 * waves + rng.normal(0, 5, waves.shape)).clip(0, 255).astype(np.uint8)
            if label == "bad":
                mask = np.zeros((256, 256), np.uint8)
                cv2.circle(mask, tuple(int(v) for v in rng.integers(50, 200, 2)), 30, 255, -1)
                image[mask > 0] = 255 - image[mask > 0]
                (root / "dummy/ground_truth/bad").mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / f"dummy/ground_truth/bad/{i:03d}_mask.png"), mask)
            path = root / f"dummy/{split}/{label}/{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
    return root


def _run_sequence(name: str, root: Path, kinds: Sequence[ExportType], **arguments: Any) -> None:
    data_root = draw_mvtec(root / "mvtecad")

    def fresh() -> tuple[AnomalibModule, MVTecAD, Engine]:
        data = MVTecAD(root=data_root, category="dummy", train_batch_size=2, num_workers=0)
        engine = Engine(logger=False, default_root_dir=root / "project", max_epochs=1, max_steps=-1, devices=1)
        return get_model(name, **arguments), data, engine

    model, data, engine = fresh()
    engine.fit(model=model, datamodule=data)
    checkpoint = root / f"project/{model.name}/{data.name}/dummy/v0/weights/lightning/model.ckpt"

    model, data, engine = fresh()
    (tested,) = engine.test(model=model, datamodule=data, ckpt_path=checkpoint)
    assert {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"} <= tested.keys()

    model, data, engine = fresh()
    (trained,) = engine.train(model=model, datamodule=data, ckpt_path=checkpoint)
    assert trained == pytest.approx(tested), "a finished run has nothing left to train"

    model, data, engine = fresh()
    (validated,) = engine.validate(model=model, datamodule=data, ckpt_path=checkpoint)
    assert 0 <= validated["image_AUROC"] <= 1

    model, data, engine = fresh()
    batches = engine.predict(model=model, ckpt_path=checkpoint, datamodule=data)
    assert sum(len(batch.pred_score) for batch in batches) == len(data.test_data)

    with one_trace():
        for kind in kinds:
            model, _, engine = fresh()
            path = engine.export(model=model, ckpt_path=checkpoint, export_type=kind)
            assert path is not None
            assert path.stat().st_size > 0


@pytest.mark.parametrize("name", sorted(SHORT))
def test_sequence(name: str, tmp_path: Path) -> None:
    # Both kinds of graph are exported, and compared, in test_export_parity.py.
    _run_sequence(name, tmp_path, [ExportType.TORCH], **SHORT[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHORT))
def test_sequence_with_default_arguments(name: str, tmp_path: Path) -> None:
    _run_sequence(name, tmp_path, [ExportType.TORCH, ExportType.ONNX, ExportType.OPENVINO])
