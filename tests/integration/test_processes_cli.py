"""Two processes from the command line, at its defaults: one run folder, which holds all that a run leaves."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pandas as pd
import pytest

SCRIPTS = Path(sysconfig.get_path("scripts"))
DATA = "--data PhantomCXR --data.num_train 8 --data.val_per_class 3 --data.test_per_class 3 --data.image_size 64 "
DATA += "--data.num_workers 0 --data.train_batch_size 4 --data.root films"
SHORT = "--model.image_size 64 --model.max_steps 4 --model.steps_per_epoch 2 --model.backbone resnet10t"
MODELS = {
    "AnatPaste": f"--model AnatPaste {SHORT} --model.num_workers 0",
    "MultiResPatchSSL": f"--model MultiResPatchSSL {SHORT} --model.patch_sizes [16,32] --model.encoder_size 16 "
    "--model.patches_per_step 8",
}
TWO = "--trainer.devices 2 --trainer.strategy ddp --trainer.accelerator cpu"
TORCHRUN = [str(SCRIPTS / "torchrun"), "--standalone", "--nproc_per_node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "subcommand", "launcher"),
    [
        ("AnatPaste", "fit", []),
        ("AnatPaste", "train", TORCHRUN),
        ("MultiResPatchSSL", "train", []),
        ("MultiResPatchSSL", "fit", TORCHRUN),
    ],
)
def test_two_processes_share_one_folder(tmp_path: Path, model: str, subcommand: str, launcher: list[str]) -> None:
    command = [*launcher, str(SCRIPTS / "anomalib"), subcommand]
    done = subprocess.run(
        [*command, *f"{MODELS[model]} {DATA} {TWO} --default_root_dir results".split()],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,  # a run takes half a minute; one that stalls at its end does not come back
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = tmp_path / "results" / model / "PhantomCXR"
    assert sorted(path.name for path in runs.iterdir()) == ["latest", "v0"]
    weights = runs / "v0" / "weights" / "lightning"
    assert sorted(path.name for path in weights.iterdir()) == ["best.ckpt", "last.ckpt", "model.ckpt"]
    assert (weights / "model.ckpt").read_bytes() == (weights / "best.ckpt").read_bytes()
    if subcommand == "train":
        predictions = pd.read_csv(runs / "v0" / "predictions.csv")
        assert len(predictions) == 6
        assert all((runs / "v0" / picture).is_file() for picture in predictions["picture"])
        assert json.loads((runs / "v0" / "run.json").read_text())["processes"] == 2
