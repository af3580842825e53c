"""What the stock command says where no terminal is, to whom it answers, and with which exit status."""

import csv
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from warm_python import run_python

COMMAND = str(Path(sys.executable).with_name("anomalib"))
MODEL = {"image_size": 64, "max_steps": 4, "steps_per_epoch": 2, "num_workers": 0, "backbone": "resnet10t"}
DATA = {"num_train": 8, "val_per_class": 3, "test_per_class": 3, "image_size": 64, "num_workers": 0}


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_python([COMMAND, *command], cwd, COLUMNS="80")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Folder of a training, and what was said."""
    root = tmp_path_factory.mktemp("trained")
    arguments = [
        text
        for section, values in (("model", MODEL), ("data", DATA))
        for key, value in values.items()
        for text in (f"--{section}.{key}", str(value))
    ]
    done = run(
        "train", "--model", "AnatPaste", "--data", "PhantomCXR", "--data.train_batch_size", "4", *arguments, cwd=root
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root, done


def test_each_line_of_a_log_comes_once(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = trained
    messages = Counter(re.findall(r" - INFO - (.*)", done.stderr))
    assert len(messages) > 8
    told = [
        text for text in messages if text.startswith(("Initializing", "PhantomCXR:", "Lung masks", "Training took"))
    ]
    assert [messages[text] for text in told] == [1] * 4
    assert "INFO" not in done.stdout, "rich's own column"
    assert "━━ " not in done.stdout, "a bar in a log file"


def test_a_log_file_gets_a_line_a_validation(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = trained
    lines = re.findall(r"Step (\d+) of 4: train_loss ([\d.e-]+), image_AUROC ([\d.]+), (\d+) min left", done.stderr)
    assert [line[0] for line in lines] == ["2", "4"]
    chosen = re.search(r"Keeping the weights of step (\d+): best AUROC .* \(([\d.]+)\)", done.stderr)
    assert chosen is not None
    assert float({line[0]: line[2] for line in lines}[chosen[1]]) == pytest.approx(float(chosen[2]), abs=1e-3)


def test_the_last_lines_are_metrics_results_and_a_picture(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    root, done = trained
    *before, results, look = done.stdout.strip().splitlines()
    assert "image_AUROC" in "".join(before[-7:])
    folder = Path(results.removeprefix("Results: "))
    assert (root / folder / "predictions.csv").is_file()
    assert (root / look.removeprefix("Look at: ")).name == "heat_maps.png"
    assert (root / look.removeprefix("Look at: ")).is_file()


def draw_films(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(5):
        noise = cv2.GaussianBlur(np.random.default_rng(number).random((64, 64)), (0, 0), 4)
        cv2.imwrite(str(folder / f"film{number}.png"), cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX))


def test_a_broken_film_is_left_out_and_named(
    trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    root, _ = trained
    draw_films(tmp_path / "films")
    broken = tmp_path / "films" / "film2.png"
    broken.write_bytes(broken.read_bytes()[:300])
    (checkpoint,) = (root / "results" / "AnatPaste" / "PhantomCXR" / "v0").rglob("model.ckpt")
    predict = ["predict", "--model", "AnatPaste", "--ckpt_path", str(checkpoint), "--data"]
    done = run(*predict, "films", cwd=tmp_path)
    assert done.returncode == 1, done.stderr[-3000:]
    (folder,) = {path.parent.resolve() for path in tmp_path.rglob("predictions.csv")}
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"film{number}.png" for number in (0, 1, 3, 4)]
    with (folder / "unreadable.csv").open() as file:
        (left_out,) = csv.DictReader(file)
    assert left_out["image"] == "film2.png"
    assert "truncated" in left_out["reason"]
    assert done.stderr.rstrip().endswith(
        f"1 images could not be read and were left out:\n  film2.png: {left_out['reason']}"
    )
    abnormal = sum(row["decision"] == "abnormal" for row in rows)
    highest = max(rows, key=lambda row: float(row["raw_score"]))
    counted, results, look = done.stdout.strip().splitlines()[-3:]
    assert counted == f"4 images scored, {abnormal} judged abnormal"
    assert (tmp_path / results.removeprefix("Results: ")).resolve() == folder
    assert (tmp_path / look.removeprefix("Look at: ")).resolve() == folder / highest["picture"]


def test_a_mistake_is_answered_in_a_sentence(tmp_path: Path) -> None:
    done = run("train", "--model", "AnatPaste", "--model.max_steps", "-3", "--data", "PhantomCXR", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-2] == "anomalib: max_steps must be at least 1, not -3."
