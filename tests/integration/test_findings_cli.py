"""Metrics by finding from the stock command line: the shipped configuration, and Padim on a drawn PadChest.

Four processes, which takes two minutes: run with ``-m slow``.
"""

import re
import subprocess
import sys
from pathlib import Path

import drawn_sets
import pytest

CONFIG = Path(__file__).parents[2] / "configs" / "by_finding.yaml"

PADIM = """
model:
  class_path: anomalib.models.Padim
  init_args:
    backbone: resnet18
    layers: [layer1]
    pre_trained: false
    n_features: 10
    evaluator:
      class_path: anomalib.metrics.Evaluator
      init_args:
        test_metrics:
          - {class_path: anomalib_cxr.metrics.FindingAUROC, init_args: {finding: FINDING, prefix: image_}}
          - {class_path: anomalib_cxr.metrics.FindingCases, init_args: {finding: FINDING, prefix: image_}}
data:
  class_path: anomalib_cxr.data.PadChest
  init_args: {root: ROOT, train_batch_size: 4, num_workers: 0}
"""


def anomalib(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the stock command; its exit status, and what it says with a table's lines put together."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "anomalib"), *arguments, f"--default_root_dir={folder}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def logged(output: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(image_\w+)\W+(\d+(?:\.\d+)?)", output)}


@pytest.mark.slow
def test_the_shipped_configuration_measures_two_lesions(tmp_path: Path) -> None:
    small = ["--data.num_train=8", "--data.val_per_class=5", "--data.test_per_class=10", "--data.num_workers=0"]
    small += ["--data.image_size=64", "--model.image_size=64", "--model.max_steps=2", "--model.steps_per_epoch=2"]
    arguments = ["--config", str(CONFIG), *small, f"--data.root={tmp_path / 'drawn'}", "--trainer.accelerator=cpu"]
    status, output = anomalib(tmp_path, "train", *arguments)
    assert status == 0, output[-3000:]
    values = logged(output)
    for finding in ("nodule", "pneumothorax"):
        assert values[f"image_Cases_{finding}"] == 2  # five kinds take turns in ten films
        assert {f"image_AUROC_{finding}", f"image_Accuracy_{finding}", f"image_F1Score_{finding}"} <= set(values)
    assert "rests on 2 images with the finding (fewer than 10) and 10 normal ones" in " ".join(output.split())
    (checkpoint,) = tmp_path.glob("AnatPaste/**/model.ckpt")
    status, output = anomalib(tmp_path, "test", *arguments, f"--ckpt_path={checkpoint}")
    assert status == 0, output[-3000:]
    assert logged(output) == values


@pytest.mark.slow
def test_padim_on_padchest_and_a_finding_that_it_has_not(tmp_path: Path) -> None:
    root = drawn_sets.padchest(tmp_path / "padchest")
    config = tmp_path / "padim.yaml"
    for finding, status in (("Pleural Effusion", 0), ("pleural efusion", 1)):
        config.write_text(PADIM.replace("FINDING", finding).replace("ROOT", str(root)))
        found, output = anomalib(tmp_path, "train", "--config", str(config), "--trainer.accelerator=cpu")
        assert found == status, output[-3000:]
        if status:
            assert "did you mean 'pleural effusion'? There are: nodule (" in " ".join(output.split())
        else:
            values = logged(output)
            assert 0 <= values["image_AUROC_pleural_effusion"] <= 1
            assert values["image_Cases_pleural_effusion"] > 1
