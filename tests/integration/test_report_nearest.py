"""The nearest normal patches in a report, from the checkpoint of a whole run."""

from pathlib import Path

import drawn_sets
import numpy as np
import pytest
import torch
import yaml

from anomalib_cxr.models import MultiResPatchSSL
from anomalib_cxr.pipelines.cross_validation.job import run_job
from anomalib_cxr.pipelines.cross_validation.plan import plan_jobs
from anomalib_cxr.pipelines.report.evaluation import Bootstrap
from anomalib_cxr.pipelines.report.nearest import _datamodule, nearest_patches
from anomalib_cxr.pipelines.report.pipeline import make_report
from anomalib_cxr.pipelines.report.runs import find_runs

MODEL = {
    "class_path": "MultiResPatchSSL",
    "init_args": {
        "image_size": 64,
        "patch_sizes": [16, 32],
        "backbone": "resnet10t",
        "encoder_size": 0,
        "max_steps": 0,
        "distance": "euclidean",
        "feature_dim": 0,
        "bank_dtype": "float32",
        "checkpoint": "last",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("nearest")
    drawn_sets.radiograph_table(root / "data")
    arguments = {"root": str(root / "data"), "table": "images.csv", "num_workers": 0, "train_batch_size": 4}
    data = {"own": {"class_path": "RadiographTable", "init_args": arguments}}
    (job,) = plan_jobs(data, {"patches": MODEL}, None, 5, [0], {"accelerator": "cpu", "devices": 1})
    folder = root / "results" / job.name
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(job.config))
    run_job(folder)
    return folder


def test_each_size_names_the_training_image_that_a_plain_search_finds(folder: Path) -> None:
    (run,), _ = find_runs([folder])
    image = run.test["image"].iloc[-1]
    ((named, sheet, text),) = nearest_patches(run, [image])
    assert named == image
    assert sheet.size[1] > 2 * 160
    data = _datamodule(run.config)
    data.setup()
    module = MultiResPatchSSL.load_from_checkpoint(folder / "weights/lightning/model.ckpt", map_location="cpu").eval()
    train, test = (module.without_augmentation(part) for part in (data.train_data, data.test_data))
    place = [Path(path).name for path in test.samples["image_path"]].index(Path(image).name)
    with torch.no_grad():
        references = module.model.features(torch.stack([train[i].image for i in range(len(train))]))
        queries = module.model.features(test[place].image[None])
    parts = text.split("; ")
    assert len(parts) == 2
    for size, (reference, query, part) in enumerate(zip(references, queries, parts, strict=True)):
        reference, query = reference.numpy(), query[0].numpy()
        rows, cols = query.shape[:2]
        best = np.full((rows, cols), np.inf)
        owner = np.zeros((rows, cols), dtype=int)
        for r in range(rows):
            for c in range(cols):
                near = reference[:, max(0, r - 1) : r + 2, max(0, c - 1) : c + 2]
                distance = np.linalg.norm(near - query[r, c], axis=-1).reshape(len(reference), -1).min(axis=1)
                best[r, c], owner[r, c] = distance.min(), distance.argmin()
        worst = np.unravel_index(best.argmax(), best.shape)
        deviation = (best[worst] - float(module.model.score_mean[size])) / float(module.model.score_std[size])
        name = Path(train.samples["image_path"].iloc[owner[worst]]).name
        assert part == f"{(16, 32)[size]} px: {deviation:.1f} sd above normal, nearest in images/{name}"


def test_the_report_shows_them_on_demand_and_says_why_not(folder: Path, tmp_path: Path) -> None:
    few = Bootstrap(draws=20)
    make_report([folder], tmp_path / "r.html", bootstrap=few)
    assert "anomalib report --nearest 3" in (tmp_path / "r.html").read_text()
    make_report([folder], tmp_path / "r.html", bootstrap=few, nearest=2)
    assert (tmp_path / "r.html").read_text().count("sd above normal") == 4  # two images, two sizes
    table = folder.parents[3] / "data" / "images.csv"
    written = table.read_text()
    table.write_text("\n".join(written.splitlines()[:-1]) + "\n")
    make_report([folder], tmp_path / "r.html", bootstrap=few, nearest=2)
    assert "the data set is split otherwise by now than in the run" in (tmp_path / "r.html").read_text()
    table.write_text(written)
    (folder / "weights/lightning/model.ckpt").unlink()
    make_report([folder], tmp_path / "r.html", bootstrap=few, nearest=2)
    assert "the run left no weights/lightning/model.ckpt" in (tmp_path / "r.html").read_text()
    (folder / "run.json").unlink()  # nothing says that its model could name them
    make_report([folder], tmp_path / "r.html", bootstrap=few, nearest=2)
    assert "earest normal patches" not in (tmp_path / "r.html").read_text()
