"""Latency of exported models beside eager PyTorch and Anomalib's Padim and Patchcore, exported the same way.

All models are fitted on a few drawn images from random weights, which changes no speed. Each row is measured in turns,
so that all suffer alike from what else the machine does; the least time of the rounds counts, the median is beside it.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore
from PIL import Image

from anomalib_cxr.deploy.runtimes import OnnxRuntimeSession, OpenVINOSession
from anomalib_cxr.models import AnatPaste, MultiResPatchSSL

SIDE, ROUNDS = 256, 40
THREADS = int(os.environ.get("CXR_BENCH_THREADS", "2"))

pytestmark = pytest.mark.benchmark

MODELS: dict[str, Callable[[], Any]] = {
    "AnatPaste 128": lambda: AnatPaste(max_steps=1, steps_per_epoch=1, num_workers=0),
    "AnatPaste 256": lambda: AnatPaste(image_size=256, max_steps=1, steps_per_epoch=1, num_workers=0),
    "MultiResPatchSSL crops": lambda: MultiResPatchSSL(max_steps=0),
    "MultiResPatchSSL map": lambda: MultiResPatchSSL(
        max_steps=0, backbone="tf_efficientnet_lite0", features="map", patch_sizes=(32,), distance="cosine"
    ),
    "Padim resnet18": lambda: Padim(pre_trained=False),
    "Patchcore resnet18": lambda: Patchcore(
        backbone="resnet18", layers=("layer2", "layer3"), pre_trained=False, coreset_sampling_ratio=0.02
    ),
}


def draw_folder(root: Path, count: int = 66) -> Folder:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for split, label in (("train", "normal"), ("test", "normal"), ("test", "abnormal")):
        folder = root / split / label
        folder.mkdir(parents=True)
        for i in range(count if split == "train" else 4):
            lungs = sum(((x - cx) / rng.uniform(0.11, 0.16)) ** 2 + ((y - 0.5) / 0.3) ** 2 < 1 for cx in (0.3, 0.7))
            image = 0.75 - 0.5 * (lungs > 0) + rng.normal(0, 0.02, x.shape)
            Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).save(folder / f"{i}.png")
    return Folder(
        name="drawn",
        root=root,
        normal_dir="train/normal",
        abnormal_dir="test/abnormal",
        normal_test_dir="test/normal",
        train_batch_size=4,
        eval_batch_size=4,
        num_workers=0,
    )


def contenders(make: Callable[[], Any], root: Path) -> dict[str, Callable[[np.ndarray], Any]]:
    """Fit, export, and open one model in every way."""
    model = make()
    engine = Engine(
        default_root_dir=root, accelerator="cpu", devices=1, logger=False, max_epochs=1, enable_progress_bar=False
    )
    engine.fit(model, datamodule=draw_folder(root / "data"))
    model.eval()
    arguments: dict[str, Any] = {"opset_version": 18}
    if isinstance(model, Patchcore):
        arguments["dynamic_axes"] = None  # its graph would be fixed to batches of 2 otherwise; so it is to 1
    size = (SIDE, SIDE)
    onnx_path = model.to_onnx(root / "export", input_size=size, **arguments)
    openvino_path = model.to_openvino(root / "export", input_size=size, onnx_kwargs=arguments)

    def eager(images: np.ndarray) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(images))

    return {
        "eager": eager,
        "ONNX Runtime f32": OnnxRuntimeSession(onnx_path, THREADS),
        "OpenVINO f32": OpenVINOSession(openvino_path, THREADS, "f32"),
        "OpenVINO default": OpenVINOSession(openvino_path, THREADS, "default"),
    }


def in_turns(runs: dict[str, Callable[[np.ndarray], Any]], images: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run and round, after a warm-up; a slow model gets fewer rounds."""
    for run in runs.values():
        run(images)
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + 40
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(images)
            times[name].append(1e3 * (time.perf_counter() - start))
        if time.perf_counter() > end:
            break
    return times


@pytest.mark.parametrize("name", MODELS)
def test_latency(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(THREADS)
    runs = contenders(MODELS[name], tmp_path)
    for batch in (1,) if name.startswith("Patchcore") else (1, 8):
        images = np.random.default_rng(0).random((batch, 3, SIDE, SIDE), np.float32)
        times = in_turns(runs, images, ROUNDS)
        eager = min(times["eager"])
        for kind, values in times.items():
            print(
                f"{name:22s} {SIDE}² batch {batch} {THREADS} threads  {kind:16s} {min(values):8.1f} ms "
                f"(median {np.median(values):7.1f})  {eager / min(values):5.2f} x eager"
            )
