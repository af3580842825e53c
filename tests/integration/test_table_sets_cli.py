"""Each table set from the stock command line: our detector fitted, and tested from its checkpoint; Padim trained.

Three processes a set, which takes minutes: run with ``-m slow``.
"""

import re
import subprocess
import sys
from pathlib import Path

import drawn_sets
import pytest

SETS = {
    "PadChest": (drawn_sets.padchest, []),
    "CheXpert": (drawn_sets.chexpert, ["--data.split=official"]),
    "RSNA": (drawn_sets.rsna, ["--data.views=[PA]"]),
    "MIMICCXR": (drawn_sets.mimic_cxr, []),
    "NIH": (drawn_sets.nih, []),
    "NLMTB": (drawn_sets.nlm_tb, []),
    "MedAD": (drawn_sets.med_ad, []),
    "VinDrCXR": (drawn_sets.vindr_cxr, []),
    "RadiographTable": (drawn_sets.radiograph_table, ["--data.table=images.csv"]),
}


def anomalib(folder: Path, *arguments: str) -> str:
    """Run the stock command and return what it says."""
    command = Path(sys.executable).parent / "anomalib"
    done = subprocess.run(
        [str(command), *arguments, "--trainer.accelerator=cpu", f"--default_root_dir={folder}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def image_auroc(output: str) -> float:
    found = re.findall(r"image_AUROC\D*([01]\.\d+)", output)
    assert found, output[-2000:]
    return float(found[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_fit_test_and_padim(name, tmp_path):
    draw, extra = SETS[name]
    root = draw(tmp_path / "data")
    data = [f"--data={name}", f"--data.root={root}", "--data.train_batch_size=4", "--data.num_workers=0", *extra]
    ours = ["--model=AnatPaste", "--model.image_size=64", "--model.max_steps=4"]
    anomalib(tmp_path, "fit", *ours, *data)
    (checkpoint,) = tmp_path.glob(f"AnatPaste/{name}/v0/**/model.ckpt")
    output = anomalib(tmp_path, "test", *ours, *data, f"--ckpt_path={checkpoint}")
    assert 0 <= image_auroc(output) <= 1
    padim = ["--model=Padim", "--model.backbone=resnet18", "--model.layers=[layer1]", "--model.pre_trained=false"]
    output = anomalib(tmp_path, "train", *padim, "--model.n_features=10", *data)
    assert 0 <= image_auroc(output) <= 1
    assert [path for path in tmp_path.glob(f"Padim/{name}/**/images/**/*.*") if path.suffix in {".png", ".jpg"}]


@pytest.mark.slow
def test_bmads_chest_split(tmp_path):
    root = drawn_sets.bmad_chest(tmp_path / "data")
    data = ["--data=RadiographTable", f"--data.root={root}", "--data.train_batch_size=4", "--data.num_workers=0"]
    data += ["--data.normal_values=good", "--data.abnormal_values=Ungood"]
    for model in (
        ["--model=AnatPaste", "--model.image_size=64", "--model.max_steps=4"],
        ["--model=Padim", "--model.backbone=resnet18", "--model.layers=[layer1]", "--model.pre_trained=false"],
    ):
        assert 0 <= image_auroc(anomalib(tmp_path, "train", *model, *data)) <= 1


@pytest.mark.slow
def test_skipped_images_are_listed_when_each_stage_ends(tmp_path):
    root = drawn_sets.radiograph_table(tmp_path / "data")
    (root / "images/003.png").write_bytes(b"")
    data = ["--data=RadiographTable", f"--data.root={root}", "--data.table=images.csv", "--data.num_workers=0"]
    padim = ["--model=Padim", "--model.backbone=resnet18", "--model.layers=[layer1]", "--model.pre_trained=false"]
    output = anomalib(tmp_path, "train", *padim, "--model.n_features=10", *data, "--data.on_error=skip")
    reports = re.findall(r"1\s+images\s+could\s+not\s+be\s+read\s+and\s+were\s+skipped", output)
    assert len(reports) == 2  # of the fit and of the test
