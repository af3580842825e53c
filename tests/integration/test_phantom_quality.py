"""Do the shipped phantom runs find lesions? Minutes each: by hand, ``pytest -m slow -s <this file>``."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.engine import Engine

from anomalib_cxr.data import PhantomCXR
from anomalib_cxr.models import AnatPaste, MultiResPatchSSL


def overlap_share(model: torch.nn.Module, datamodule: PhantomCXR, top: float = 0.05) -> float:
    """Share of abnormal test images in which the brightest pixels of the map overlap the lesion."""
    model.eval()
    hits = []
    for batch in datamodule.test_dataloader():
        with torch.no_grad():
            maps = model.model(model.pre_processor.transform(batch.image)).anomaly_map
        masks = torch.nn.functional.interpolate(batch.gt_mask[:, None].float(), size=maps.shape[-2:], mode="nearest")
        for heat, mask, label in zip(maps[:, 0].numpy(), masks[:, 0].numpy() > 0.5, batch.gt_label, strict=True):
            if label:
                bright = heat >= np.quantile(heat, 1 - top)
                hits.append(bool((bright & mask).any()))
    return float(np.mean(hits))


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [AnatPaste, MultiResPatchSSL])
def test_default_run_finds_lesions(tmp_path: Path, model_class: type) -> None:
    torch.set_num_threads(2)
    start = time.perf_counter()
    model, data = model_class(), PhantomCXR(root=tmp_path / "phantom", num_workers=0)
    (metrics,) = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False).train(
        model, datamodule=data
    )
    share = overlap_share(model, data)
    print(f"{model_class.__name__}: {metrics}, overlap {share:.3f}, {time.perf_counter() - start:.0f} s")
    assert metrics["image_AUROC"] >= 0.75
    assert share >= 0.70
