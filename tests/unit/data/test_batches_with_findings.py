"""Patient and findings of each image: from the table into batches, and through whole runs of any model."""

import copy
from pathlib import Path

import drawn_sets
import numpy as np
import pytest
import torch
from anomalib.data import Folder, ImageBatch, InferenceBatch, NumpyImageBatch
from anomalib.engine import Engine
from anomalib.metrics import Evaluator
from anomalib.models import Padim
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.fabric.utilities import move_data_to_device
from sklearn import metrics as sk
from torchvision.transforms.v2 import Resize

from anomalib_cxr.data import RadiographBatch, RadiographDataset, RadiographItem, RadiographTable
from anomalib_cxr.metrics import FindingAUROC, FindingEvaluator, read_predictions
from anomalib_cxr.models import AnatPaste, MultiResPatchSSL

FINDINGS = ("nodule", "Edema", "edema|nodule", "Pleural effusion|edema ", "")
NAMES = ("nodule", "edema", "Pleural Effusion")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in the layout of RadiographTable, whose abnormal images have findings in turns."""
    root = tmp_path_factory.mktemp("films")
    rows = []
    splits = ["train"] * 8 + ["val"] * 8 + ["test"] * 26
    for i, split in enumerate(splits):
        sick = split != "train" and i % 4 != 0
        name = f"images/{i:03}.png"
        image = drawn_sets.chest(i, sick, size=32 + 8 * (i % 2))
        image[:8, :8] = np.random.default_rng(i).random()  # so that scores of normal and abnormal images overlap
        drawn_sets.save(root / name, image)
        row = {"image_path": name, "label": "abnormal" if sick else "normal", "patient_id": f"P{i:03}", "split": split}
        rows.append(row | {"findings": FINDINGS[i % 5] if sick else ""})
    drawn_sets.write_csv(root / "images.csv", rows)
    return root


def films(root: Path, **arguments) -> RadiographTable:
    return RadiographTable(root, "images.csv", train_batch_size=4, eval_batch_size=5, **{"num_workers": 0} | arguments)


def padim(**arguments) -> Padim:
    return Padim(backbone="resnet18", layers=["layer1"], pre_trained=False, n_features=10,
                 pre_processor=PreProcessor(transform=Resize((32, 32))), **arguments)  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_the_patient_and_the_findings_of_each_image(root, workers) -> None:
    data = films(root, num_workers=workers)
    data.setup()
    table = data.samples.set_index("image_path")
    seen = []
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert isinstance(batch, RadiographBatch)
            rows = table.loc[batch.image_path]
            assert batch.patient_id == rows["patient_id"].tolist()
            assert batch.findings == rows["findings"].tolist()
            seen += batch.findings
    assert len(seen) == len(table)
    assert set(seen) >= {"edema|nodule", "nodule", ""}


def test_a_table_without_findings_makes_none_and_a_missing_value_makes_an_empty_text(root) -> None:
    data = films(root)
    data.setup()
    bare = RadiographDataset(data.samples.drop(columns=["findings", "patient_id"]))
    batch = bare.collate_fn([bare[0], bare[1]])
    assert (batch.findings, batch.patient_id) == (None, None)
    samples = data.samples.assign(findings=None, patient_id=float("nan"))
    item = RadiographDataset(samples)[0]
    assert (item.findings, item.patient_id) == ("", "")


@pytest.fixture
def batch() -> RadiographBatch:
    items = [RadiographItem(image=torch.rand(3, 4, 5), gt_label=torch.tensor(i), image_path=f"{i}.png",
                            findings=("", "nodule")[i], patient_id=f"P{i}") for i in range(2)]  # fmt: skip
    return RadiographBatch.collate(items)


def test_findings_survive_what_anomalib_does_to_batches(batch) -> None:
    moved = move_data_to_device(batch, "meta")
    assert moved.image.device.type == "meta"
    prediction = InferenceBatch(pred_score=torch.tensor([0.1, 0.9]), anomaly_map=torch.rand(2, 4, 5))
    updated = copy.deepcopy(batch).update(**prediction._asdict())
    processor = PostProcessor()
    processor._image_threshold.fill_(0.5)
    processor.post_process_batch(updated)
    assert updated.pred_label.tolist() == [False, True]
    renewed = updated.update(in_place=False, pred_score=torch.zeros(2))
    for one in (moved, updated, renewed):
        assert isinstance(one, RadiographBatch)
        assert (one.findings, one.patient_id) == (["", "nodule"], ["P0", "P1"])
    assert [(item.findings, item.patient_id) for item in updated] == [("", "P0"), ("nodule", "P1")]
    assert all(isinstance(item, RadiographItem) for item in updated)


def test_findings_survive_the_change_to_numpy(batch) -> None:
    numpy_batch = batch.to_numpy()
    assert isinstance(numpy_batch, NumpyImageBatch)
    assert numpy_batch.findings == ["", "nodule"]
    numpy_item = batch.items[1].to_numpy()
    assert (numpy_item.findings, numpy_item.patient_id) == ("nodule", "P1")
    assert np.array_equal(numpy_item.image, batch.image[1].permute(1, 2, 0).numpy())


MODELS = {
    "Padim": padim,
    "AnatPaste": lambda **more: AnatPaste(image_size=32, max_steps=2, num_workers=0, backbone="resnet10t", **more),
    "MultiResPatchSSL": lambda **more: MultiResPatchSSL(
        image_size=32,
        patch_sizes=(16,),
        encoder_size=16,
        backbone="resnet10t",
        patches_per_step=4,
        max_steps=2,
        steps_per_epoch=2,
        feature_dim=8,
        patch_distance=0,
        weights=(1.0,),
        **more,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_run_measures_each_finding_as_its_predictions_say(name, root, tmp_path) -> None:
    visualizer = {"visualizer": False} if name != "Padim" else {}  # Padim's draws pictures of each item
    model = MODELS[name](evaluator=FindingEvaluator(list(NAMES)), **visualizer)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, enable_progress_bar=False)
    (measured,) = engine.train(model, datamodule=films(root))
    table = read_predictions(next(tmp_path.rglob("predictions.csv")))
    for finding in NAMES:
        rows = table[(table["label"] == "normal") | table["findings"].str.contains(finding, case=False)]
        truth, decisions = rows["label"] == "abnormal", rows["decision"] == "abnormal"
        expected = (sk.roc_auc_score(truth, rows["score"]), sk.accuracy_score(truth, decisions),
                    sk.f1_score(truth, decisions), truth.sum())  # fmt: skip
        key = finding.lower().replace(" ", "_")
        found = [measured[f"image_{measure}_{key}"] for measure in ("AUROC", "Accuracy", "F1Score", "Cases")]
        assert found == pytest.approx(expected, abs=1e-6), finding
        assert 4 <= found[-1] < (table["label"] == "abnormal").sum()
    assert name != "Padim" or list(tmp_path.rglob("*.png"))


def test_an_unknown_finding_ends_a_run_before_it_trains(root, tmp_path) -> None:
    model = padim(evaluator=Evaluator(test_metrics=[FindingAUROC("pleural efusion")]))
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, enable_progress_bar=False)
    expected = r"'pleural efusion', did you mean 'Pleural effusion'\? There are: edema \(\d+\), nodule \(\d+\), Pleural"
    with pytest.raises(ValueError, match=expected):
        engine.train(model, datamodule=films(root))
    assert model.trainer.global_step == 0
    assert not model.model.memory_bank


def test_stock_data_without_findings_are_refused_in_one_sentence(root, tmp_path) -> None:
    for folder, part in (("normal", range(8)), ("abnormal", range(9, 12))):
        for i in part:
            drawn_sets.save(tmp_path / folder / f"{i}.png", drawn_sets.chest(i, folder == "abnormal", size=32))
    data = Folder("films", root=tmp_path, normal_dir="normal", abnormal_dir="abnormal", num_workers=0)
    model = padim(evaluator=Evaluator(val_metrics=[FindingAUROC("nodule", prefix="image_")]))
    engine = Engine(default_root_dir=tmp_path / "run", accelerator="cpu", devices=1, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"image_AUROC_nodule: the batch has no findings \(ImageBatch\)"):
        engine.fit(model, datamodule=data)
    assert issubclass(RadiographBatch, ImageBatch)
