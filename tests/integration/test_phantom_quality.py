"""Do the shipped phantom runs find lesions? Minutes each: by hand, ``pytest -m slow -s <this file>``."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from anomalib.engine import Engine
from sklearn.metrics import roc_auc_score

from anomalib_cxr.data import PhantomCXR
from anomalib_cxr.models import AnatPaste, MultiResPatchSSL

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


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


@torch.no_grad()
def fused_and_single_aurocs(model: MultiResPatchSSL, datamodule: PhantomCXR) -> tuple[float, list[float]]:
    """Test AUROC of the fused map, and of the map of each patch size alone."""
    network = model.eval().model
    scores, labels = [], []
    for batch in datamodule.test_dataloader():
        maps = network.maps(model.pre_processor.transform(batch.image))
        every = [network.fuse(maps), *maps.split(1, dim=1)]
        scores.append(torch.stack([network.image_score(anomaly_map) for anomaly_map in every]))
        labels.append(batch.gt_label)
    labels = torch.cat(labels).numpy()
    fused, *single = (roc_auc_score(labels, score.numpy()) for score in torch.cat(scores, dim=1))
    return fused, single


def train(model: AnatPaste | MultiResPatchSSL, data: PhantomCXR, root: Path) -> tuple[dict[str, float], float]:
    """Test metrics and overlap of a whole run."""
    torch.set_num_threads(2)
    start = time.perf_counter()
    (metrics,) = Engine(default_root_dir=root, accelerator="cpu", enable_progress_bar=False).train(
        model, datamodule=data
    )
    share = overlap_share(model, data)
    print(f"{type(model).__name__}: {metrics}, overlap {share:.3f}, {time.perf_counter() - start:.0f} s")
    return metrics, share


def configured(config: Path, root: Path, **arguments: int) -> tuple[MultiResPatchSSL, PhantomCXR]:
    """Model and data of a configuration, arguments that both have set."""
    sections = yaml.safe_load(config.read_text())
    model = MultiResPatchSSL(**sections["model"]["init_args"] | arguments)
    data = PhantomCXR(**sections["data"]["init_args"] | arguments | {"root": root / "phantom", "num_workers": 0})
    return model, data


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_first_command_finds_lesions(tmp_path: Path, seed: int) -> None:
    metrics, share = train(*configured(CONFIGS / "quickstart.yaml", tmp_path, seed=seed), tmp_path)
    assert metrics["image_AUROC"] >= 0.85
    assert share >= 0.85


@pytest.mark.slow
def test_default_anat_paste_finds_lesions(tmp_path: Path) -> None:
    metrics, share = train(AnatPaste(), PhantomCXR(root=tmp_path / "phantom", num_workers=0), tmp_path)
    assert metrics["image_AUROC"] >= 0.75
    assert share >= 0.70


@pytest.mark.slow
def test_shipped_multires_patch_ssl_finds_lesions(tmp_path: Path) -> None:
    model, data = configured(CONFIGS / "multires_patch_ssl" / "quickstart.yaml", tmp_path)
    metrics, share = train(model, data, tmp_path)
    fused, single = fused_and_single_aurocs(model, data)
    print(f"fused {fused:.3f}, each size alone {[round(auroc, 3) for auroc in single]}")
    assert metrics["image_AUROC"] >= 0.80
    assert metrics["pixel_AUROC"] >= 0.75
    assert share >= 0.70
    assert fused >= max(single) - 0.01
