"""`anomalib cross-validate`, killed half-way and started again: four processes, so run with ``-m slow``."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import drawn_sets
import pandas as pd
import pytest
from filelock import FileLock

from anomalib_cxr.metrics import read_predictions

CONFIG = """
results: {root}/results
data:
  own:
    class_path: RadiographTable
    init_args: {{root: {root}/data, table: images.csv, num_workers: 0, train_batch_size: 4}}
models:
  ours:
    class_path: AnatPaste
    init_args: {{image_size: 64, max_steps: 60, steps_per_epoch: 5, backbone: resnet10t, num_workers: 0}}
  broken:
    class_path: AnatPaste
    init_args: {{image_size: 8}}
folds: [1]
draws: 50
trainer: {{accelerator: cpu, devices: 1}}
"""


def start(root: Path) -> subprocess.Popen:
    command = [str(Path(sys.executable).parent / "anomalib"), "cross-validate", "--config", str(root / "config.yaml")]
    return subprocess.Popen(
        command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    drawn_sets.radiograph_table(tmp_path / "data", normal=30, abnormal=20)
    (tmp_path / "config.yaml").write_text(CONFIG.format(root=tmp_path))
    folder = tmp_path / "results/own/ours/fold_1_seed_0"
    killed = start(tmp_path)
    deadline = time.monotonic() + 240
    while not (folder / "weights/lightning/model.ckpt").exists():
        assert killed.poll() is None, killed.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with FileLock(folder / ".lock", timeout=20):  # its process ended with it
        assert not (folder / "done.json").exists()

    again = start(tmp_path)
    output, _ = again.communicate(timeout=400)
    assert again.returncode == 1, output
    assert "Going on from step" in (folder / "log.txt").read_text()
    assert "1 of 2 jobs failed:" in output
    assert "image_size must be at least 32" in output
    table = pd.read_csv(tmp_path / "results/table.csv")
    assert table[["model", "checkpoint", "jobs"]].to_numpy().tolist() == [
        ["ours", "best by validation labels", 1], ["ours", "last", 1]
    ]  # fmt: skip
    assert "jobs failed" in (tmp_path / "results/table.md").read_text()
    assert len(read_predictions(folder / "predictions.csv")) == 10
    assert len(read_predictions(folder / "last/predictions.csv")) == 10
    assert list((folder / "images").rglob("*.png"))
