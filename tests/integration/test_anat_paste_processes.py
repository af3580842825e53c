"""Two processes build the bank of one: each training image once, in the data set's order."""

from pathlib import Path

import torch
from anomalib.engine import Engine
from tiny_radiographs import TinyRadiographs
from warm_python import run_python

from anomalib_cxr.models import AnatPaste

REBUILD_IN_TWO = """
import sys
from pathlib import Path
import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback
from tiny_radiographs import TinyRadiographs
from anomalib_cxr.models import AnatPaste

class Rebuild(Callback):
    def on_validation_end(self, trainer, pl_module):
        assert trainer.world_size == 2
        pl_module.model.density.references = torch.empty(0, 0)
        pl_module.rebuild_bank()
        torch.save(pl_module.model.density.references, Path(sys.argv[3]) / f"bank{trainer.global_rank}.pt")

checkpoint, data, out = sys.argv[1:]
engine = Engine(default_root_dir=out, accelerator="cpu", devices=2, strategy="ddp_fork", callbacks=[Rebuild()],
                enable_progress_bar=False)
engine.validate(AnatPaste.load_from_checkpoint(checkpoint), datamodule=TinyRadiographs(Path(data), count=13))
"""


def test_two_processes_build_the_bank_of_one(tmp_path: Path) -> None:
    data = TinyRadiographs(tmp_path / "data", count=13)  # an odd number: DistributedSampler would pad it
    model = AnatPaste(image_size=64, max_steps=2, num_workers=0, backbone="resnet10t", checkpoint="last")
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, enable_progress_bar=False)
    engine.fit(model, datamodule=data)
    checkpoint = next(tmp_path.glob("AnatPaste/*/latest/weights/lightning/model.ckpt"))
    done = run_python(
        ["-c", REBUILD_IN_TWO, str(checkpoint), str(tmp_path / "data"), str(tmp_path)],
        Path.cwd(),
        300,
        PYTHONPATH=str(Path(__file__).parent),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = torch.load(checkpoint, weights_only=True)["state_dict"]["model.density.references"]
    two = [torch.load(tmp_path / f"bank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len(one) == 13
    assert torch.equal(two[0], two[1])
    torch.testing.assert_close(two[0], one, rtol=0, atol=1e-6)
