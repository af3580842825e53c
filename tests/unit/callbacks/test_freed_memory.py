"""Freed memory is kept while training on a CPU, and given back afterwards: counted in page faults."""

import subprocess
import sys

import pytest

COUNT = """
import resource
import torch
from lightning.pytorch import LightningModule, Trainer
from anomalib_cxr.callbacks.freed_memory import KeepFreedMemory, freed_memory_kept

torch.set_num_threads(1)

def faults():
    for _ in range(4):  # the heap finds its size
        torch.zeros(1 << 24).add_(1)  # 64 MiB, freed at once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.zeros(1 << 24).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [faults()]
with freed_memory_kept() as kept:
    found.append(faults())
found.append(faults())
callback, module, trainer = KeepFreedMemory(), LightningModule(), Trainer(logger=False, accelerator="cpu")
callback.on_train_start(trainer, module)
found.append(faults())
callback.on_exception(trainer, module, RuntimeError())
found.append(faults())
trainer.state.fn = "fit"
callback.on_train_start(trainer, module)
callback.on_validation_start(trainer, module)
found.append(faults())
callback.on_validation_end(trainer, module)
found.append(faults())
callback.on_train_end(trainer, module)
found.append(faults())
trainer.state.fn = "validate"
callback.on_validation_start(trainer, module)
callback.on_validation_end(trainer, module)
found.append(faults())
print("FAULTS", kept, *found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the switch")
def test_pages_are_kept_inside_and_given_back_outside() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept, *found = next(line for line in done.stdout.splitlines() if line.startswith("FAULTS")).split()[1:]
    if kept != "True":
        pytest.skip("this C library is not glibc")
    outside, inside, after, in_training, after_error, *later = (int(count) for count in found)
    in_validation, after_validation, after_training, validated_alone = later
    most = outside / 10
    assert outside > 0
    assert max(inside, in_training, after_validation) < most
    assert min(after, after_error, in_validation, after_training, validated_alone) > outside / 2
