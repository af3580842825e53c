"""A fit of two processes: its banks are those that one process builds with the weights of the checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.models import MultiResPatchSSL

FIT_WITH_TWO = """
import sys
from pathlib import Path
from anomalib.engine import Engine
from tiny_radiographs import TinyRadiographs
from anomalib_cxr.models import MultiResPatchSSL

model = MultiResPatchSSL(image_size=64, patch_sizes=(16, 32), encoder_size=16, backbone="resnet10t", max_steps=3,
                         steps_per_epoch=3, patches_per_step=8, feature_dim=0, bank_dtype="float32",
                         distance="euclidean", checkpoint="last")
engine = Engine(default_root_dir=sys.argv[2], accelerator="cpu", devices=2, strategy="ddp_fork",
                enable_progress_bar=False)
engine.fit(model, datamodule=TinyRadiographs(Path(sys.argv[1]), count=13))
"""


def test_a_fit_of_two_processes_builds_the_banks_of_one(tmp_path: Path) -> None:
    data = TinyRadiographs(tmp_path / "data", count=13)  # an odd number: DistributedSampler would pad it
    data.setup()
    done = subprocess.run(
        [sys.executable, "-c", FIT_WITH_TWO, str(tmp_path / "data"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (checkpoint,) = tmp_path.glob("MultiResPatchSSL/*/v*/weights/lightning/model.ckpt")
    model = MultiResPatchSSL.load_from_checkpoint(checkpoint).eval()
    images = torch.stack([data.train_data[i].image for i in range(13)])
    with torch.no_grad():
        expected = model.model.features(images)
    for bank, features in zip(model.model.reference_banks(), expected, strict=True):
        torch.testing.assert_close(bank.search.references, features.permute(1, 2, 0, 3), rtol=1e-5, atol=1e-5)
