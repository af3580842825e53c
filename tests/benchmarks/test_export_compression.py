"""Compressed exports of a trained checkpoint: size, latency, deviation, and AUROC lost on ZhangLab's test films.

    CXR_CHECKPOINT=.../model.ckpt CXR_MODEL=AnatPaste pytest -m benchmark -s tests/benchmarks/test_export_compression.py

Needs the ``compress`` extra for INT8, and ZhangLab below ``$CXR_SHARED/data``.
"""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from anomalib.deploy import CompressionType
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

import anomalib_cxr.models
from anomalib_cxr.data import ZhangLab
from anomalib_cxr.deploy.resize import antialiased_resize
from anomalib_cxr.deploy.runtimes import OpenVINOSession, Precision
from anomalib_cxr.imaging import read_radiograph

CHECKPOINT = os.environ.get("CXR_CHECKPOINT")
LIMIT = int(os.environ.get("CXR_BENCH_IMAGES", "0")) or None
THREADS = int(os.environ.get("CXR_BENCH_THREADS", "2"))

pytestmark = pytest.mark.benchmark

VARIANTS: list[tuple[str, CompressionType | None, Precision]] = [
    ("f32", None, "f32"),
    ("default precision", None, "default"),
    ("FP16, f32", CompressionType.FP16, "f32"),
    ("FP16, default", CompressionType.FP16, "default"),
    ("INT8 weights, f32", CompressionType.INT8, "f32"),
    ("INT8 weights, default", CompressionType.INT8, "default"),
    ("INT8 PTQ, f32", CompressionType.INT8_PTQ, "f32"),
    ("INT8 PTQ, default", CompressionType.INT8_PTQ, "default"),
]


def test_compression(shared: Path, tmp_path: Path) -> None:
    if CHECKPOINT is None:
        pytest.skip("set CXR_CHECKPOINT to a checkpoint trained on ZhangLab")
    root = shared / "data" / "zhanglab"
    model = getattr(anomalib_cxr.models, os.environ.get("CXR_MODEL", "AnatPaste")).load_from_checkpoint(CHECKPOINT)
    model.eval()
    size = tuple(model.input_size)
    films = [(path, label) for label in ("NORMAL", "PNEUMONIA") for path in sorted((root / "test" / label).iterdir())]
    films = films[:: max(1, len(films) // LIMIT)] if LIMIT else films
    images = [
        np.repeat(antialiased_resize(read_radiograph(path), size)[None, None], 3, axis=1) for path, _ in tqdm(films)
    ]
    labels = [label == "PNEUMONIA" for _, label in films]

    paths: dict[CompressionType | None, Path] = {}
    lines, reference = [], None
    for name, kind, precision in VARIANTS:
        if kind not in paths:
            folder = tmp_path / str(kind)
            paths[kind] = model.to_openvino(folder, compression_type=kind, datamodule=ZhangLab(root, num_workers=0))
        session = OpenVINOSession(paths[kind], THREADS, precision, size)
        times, scores, maps = [], [], []
        for image in images:
            start = time.perf_counter()
            outputs = session(image)
            times.append(1e3 * (time.perf_counter() - start))
            scores.append(outputs["pred_score"].item())
            maps.append(outputs["anomaly_map"])
        found = np.asarray(scores), np.concatenate(maps)
        reference = reference or found
        auroc, best = roc_auc_score(labels, found[0]), roc_auc_score(labels, reference[0])
        lines.append(
            f"{name:22s} {paths[kind].with_suffix('.bin').stat().st_size / 2**20:7.1f} MiB  {min(times):6.1f} ms "
            f"(median {np.median(times):6.1f})  score ±{np.abs(found[0] - reference[0]).max():.4f}  "
            f"map ±{np.abs(found[1] - reference[1]).max():.4f}  "
            f"decisions changed {int(((found[0] > 0.5) != (reference[0] > 0.5)).sum()):3d}  "
            f"AUROC {auroc:.4f} (lost {best - auroc:+.4f})"
        )
    print(f"\n{len(films)} films, batch 1, {THREADS} threads\n" + "\n".join(lines))
