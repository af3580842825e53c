"""What `encoder_size` costs: parameters, multiplications and time of one patch, on one thread.

Run with ``pytest -m benchmark -s tests/benchmarks/test_patch_encoder_cost.py``.
"""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from anomalib_cxr.models.components.patch_encoder import PatchEncoder

pytestmark = pytest.mark.benchmark


@torch.no_grad()
def test_cost_of_encoder_sizes():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print()
    for backbone in ("resnet50", "resnet18", "tf_efficientnet_lite0"):
        encoder = PatchEncoder(backbone).eval()
        parameters = sum(parameter.numel() for parameter in encoder.parameters())
        for size in (32, 64, 96, 128, 224):
            patches = torch.rand(4, 1, size, size)
            with FlopCounterMode(display=False) as counter:
                encoder(patches)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                encoder(patches)
                times.append(time.perf_counter() - start)
            print(
                f"{backbone:22s} {parameters / 1e6:5.1f} M parameters  encoder_size {size:3d}  "
                f"{counter.get_total_flops() / 4 / 2e9:6.3f} GMAC  {min(times) / 4 * 1e3:6.1f} ms a patch"
            )
    torch.set_num_threads(threads)
