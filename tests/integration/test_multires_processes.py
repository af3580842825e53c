"""A fit of two processes: its banks are those that one process builds with the weights of the checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from tiny_radiographs import TinyRadiographs
from warm_python import run_python

from anomalib_cxr.augmentations.pose_and_exposure import pose_and_expose
from anomalib_cxr.models import MultiResPatchSSL

SMALL = {
    "image_size": 64,
    "patch_sizes": (16, 32),
    "encoder_size": 16,
    "backbone": "resnet10t",
    "patches_per_step": 8,
    "feature_dim": 0,
    "bank_dtype": "float32",
    "distance": "euclidean",
    "checkpoint": "last",
}
FIT_WITH_TWO = """
import json
import sys
from pathlib import Path
from anomalib.engine import Engine
from tiny_radiographs import TinyRadiographs
from anomalib_cxr.models import MultiResPatchSSL

model = MultiResPatchSSL(**json.loads(sys.argv[3]))
engine = Engine(default_root_dir=sys.argv[2], accelerator="cpu", devices=2, strategy="ddp_fork",
                enable_progress_bar=False)
engine.fit(model, datamodule=TinyRadiographs(Path(sys.argv[1]), count=13))
"""


def fit_with_two(tmp_path: Path, **arguments: int) -> MultiResPatchSSL:
    """The model of the checkpoint of a fit of two processes on the images of ``tmp_path / "data"``."""
    done = run_python(
        ["-c", FIT_WITH_TWO, str(tmp_path / "data"), str(tmp_path), json.dumps(SMALL | arguments)],
        Path.cwd(),
        300,
        PYTHONPATH=str(Path(__file__).parent),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (checkpoint,) = tmp_path.glob("MultiResPatchSSL/*/v*/weights/lightning/model.ckpt")
    return MultiResPatchSSL.load_from_checkpoint(checkpoint).eval()


# Copies are altered alike whichever process makes them. With epochs the larger patches rest after 3 of 13 steps.
@pytest.mark.parametrize("length", [{"max_steps": 0, "bank_views": 1}, {"epochs": 1}], ids=str)
def test_a_fit_of_two_processes_builds_the_banks_of_one(tmp_path: Path, length: dict[str, int]) -> None:
    data = TinyRadiographs(tmp_path / "data", count=13)  # an odd number: DistributedSampler would pad it
    data.setup()
    model = fit_with_two(tmp_path, **length)
    encoders = (
        model if "epochs" in length else MultiResPatchSSL(**SMALL, max_steps=0).eval()
    )  # these may not have moved
    images = torch.stack([data.train_data[i].image for i in range(13)])
    if "bank_views" in length:
        draws = torch.rand(13, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        images = torch.cat([images, pose_and_expose(images, draws)])
    with torch.no_grad():
        expected = encoders.model.features(images)
    for bank, features in zip(model.model.reference_banks(), expected, strict=True):
        torch.testing.assert_close(bank.search.references, features.permute(1, 2, 0, 3), rtol=1e-5, atol=1e-5)
