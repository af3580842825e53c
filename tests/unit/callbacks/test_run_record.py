"""What a run says of itself, and what a report makes of it."""

import importlib.metadata
import json
import logging
import platform
from enum import Enum
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Padim
from grey_films import GreyFilms, GreyModel
from lightning.pytorch import Trainer
from PIL import Image

from anomalib_cxr.callbacks import PredictionsWriter
from anomalib_cxr.callbacks.run_record import RunRecordError, plain, read_record, write_json
from anomalib_cxr.metrics import read_predictions
from anomalib_cxr.pipelines.report.evaluation import Bootstrap
from anomalib_cxr.pipelines.report.pipeline import make_report
from anomalib_cxr.pipelines.report.runs import FinishedRun


class Lungs:
    """Stands for the masks of a model that has some."""

    def summary(self) -> str:
        return "Lung masks of 4 images: two of them odd."


class Odd:
    """What JSON cannot hold."""

    def __repr__(self) -> str:
        return "Odd(folder='/home/someone/private/films')"


class MaskedModel(GreyModel):
    """A model with lung masks after the start of its fit, and an argument of an odd kind."""

    map_description = "grey <above> the mean"

    def __init__(self, odd: object = None, patients: object = None, floor: float = 0.5, **kwargs) -> None:
        super().__init__(**kwargs)
        self.region_masks = None

    def on_fit_start(self) -> None:
        self.region_masks = Lungs()


def engine(root: Path, **kwargs) -> Engine:
    return Engine(
        default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False,
        **kwargs,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a plain run of fit and test."""
    root = tmp_path_factory.mktemp("recorded")
    model = MaskedModel(odd=Odd(), patients=["Meier", "Huber"], floor=float("nan"))
    engine(root / "run").train(model, datamodule=GreyFilms(root / "secret" / "films"))
    return next((root / "run").glob("MaskedModel/GreyFilms/v0"))


def test_a_plain_run_says_what_it_was(trained: Path) -> None:
    text = (trained / "run.json").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["stage"] == "test"
    assert record["model"]["class_path"].endswith("test_run_record.MaskedModel")
    arguments = record["model"]["init_args"]
    assert arguments == {
        "nan_at": None,
        "odd": "Odd(folder='…/films')",
        "patients": "2 values, not listed",
        "floor": "nan",
    }
    assert record["data"]["class_path"].endswith("grey_films.GreyFilms")
    given = {"root": "…/films", "train_batch_size": 4, "eval_batch_size": 2, "num_workers": 0, "seed": 0}
    assert given.items() <= record["data"]["init_args"].items()
    packages = ["anomalib-cxr", "anomalib", "lightning", "timm"]
    expected = {name: importlib.metadata.version(name) for name in packages}
    assert record["versions"] == expected | {"torch": torch.__version__, "python": platform.python_version()}
    assert (record["device"], record["precision"], record["processes"]) == ("cpu", "32-true", 1)
    assert (record["map"], record["nearest_references"]) == ("grey <above> the mean", False)
    assert (record["checkpoint"], record["step"]) == (None, 1)
    assert record["training"]["region_masks"] == Lungs().summary()
    assert "secret" not in text
    assert "Meier" not in text
    for patient in read_predictions(trained / "predictions.csv")["patient_id"]:
        assert patient not in text


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_a_checkpoint_brings_what_its_training_was(trained: Path, tmp_path: Path, stage: str) -> None:
    films = trained.parents[3] / "secret" / "films"
    engine(tmp_path / "fit").fit(MaskedModel(), datamodule=GreyFilms(films))
    (checkpoint,) = (tmp_path / "fit").glob("MaskedModel/GreyFilms/v0/weights/lightning/model.ckpt")
    run = engine(tmp_path, callbacks=[PredictionsWriter()], precision="bf16-mixed")
    if stage == "test":
        run.test(MaskedModel(), datamodule=GreyFilms(films), ckpt_path=checkpoint)
    else:
        run.predict(MaskedModel(), data_path=films / "test", ckpt_path=checkpoint)
    record = read_record(next(tmp_path.rglob("run.json")))
    assert record["stage"] == stage
    assert record["data"]["class_path"].endswith("GreyFilms" if stage == "test" else "PredictDataset")
    assert (record["checkpoint"], record["step"]) == ("…/model.ckpt", 1)
    assert (record["precision"], record["training"]["precision"]) == ("bf16-mixed", "32-true")
    assert record["training"]["region_masks"] == Lungs().summary()


def test_the_report_of_a_plain_run_has_versions_arguments_and_region_masks(trained: Path, tmp_path: Path) -> None:
    make_report([trained], tmp_path / "r.html", bootstrap=Bootstrap(draws=20))
    page = (tmp_path / "r.html").read_text()
    for text in (
        "<dt>model</dt><dd>MaskedModel</dd>",
        "<dt>data</dt><dd>GreyFilms</dd>",
        "<dt>heat maps</dt><dd>grey &lt;above&gt; the mean</dd>",
        "<dt>trained on</dt><dd>cpu, precision 32-true</dd>",
        "<dt>weights</dt><dd>those in memory after the training, step 1</dd>",
        f"lightning {importlib.metadata.version('lightning')}, torch {torch.__version__}",
        f"<p>{Lungs().summary()}</p>",
        "train_batch_size: 4",
    ):
        assert text in page, text
    card = page[page.index('id="card"') :]
    assert "MaskedModel" in card
    assert f"timm {importlib.metadata.version('timm')}" in card
    assert "run.json" not in page, "nothing is missing"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "The run left no run.json: "),
        ("{half", "run.json cannot be read (Expecting property name"),
        ("[1]", "run.json cannot be read (it holds no object): "),
        ('{"model": 3, "versions": ["x"], "training": "y", "step": "z", "map": 1}', ""),
        ('{"model": {"class_path": ["x"]}, "versions": {"a": {}}, "training": {"region_masks": [1]}, "date": {}}', ""),
    ],
)
def test_a_missing_or_broken_record_takes_one_sentence(
    trained: Path, tmp_path: Path, content: str | None, says: str
) -> None:
    for name in ("predictions.csv", "predictions_val.csv"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert make_report([tmp_path], tmp_path / "r.html", bootstrap=Bootstrap(draws=20)) == {}
    page = (tmp_path / "r.html").read_text()
    assert page.lower().count("run.json") == bool(says)
    assert says in page
    assert "AUROC" in page


def test_a_run_that_dies_leaves_no_record_of_another(trained: Path, tmp_path: Path) -> None:
    films = trained.parents[3] / "secret" / "films"
    first = engine(tmp_path)
    first.test(GreyModel(), datamodule=GreyFilms(films))
    folder = next(tmp_path.rglob("run.json")).parent
    (folder / "predictions.csv").unlink()
    (folder / "predictions.csv").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError):
        engine(tmp_path).test(GreyModel(), datamodule=GreyFilms(films))
    assert not (folder / "run.json").exists()


def test_other_processes_than_the_first_write_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda _: False))
    engine(tmp_path).test(GreyModel(), datamodule=GreyFilms(trained.parents[3] / "secret" / "films"))
    assert not [path.name for path in tmp_path.rglob("*") if path.is_file()]


def test_a_built_in_model_on_built_in_data_says_it_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label, greys in (("normal", range(10, 20)), ("abnormal", range(60, 66))):
        (tmp_path / "films" / label).mkdir(parents=True)
        for grey in greys:
            noise = np.random.default_rng(grey).integers(grey, grey + 9, (32, 32), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "films" / label / f"{grey}.png")
    data = Folder("films", "normal", tmp_path / "films", "abnormal", num_workers=0, train_batch_size=4)
    model = Padim("resnet10t", ["layer1"], pre_trained=False, n_features=4, visualizer=False)
    with caplog.at_level(logging.WARNING):
        engine(tmp_path / "run", callbacks=[PredictionsWriter()]).train(model, datamodule=data)
    record = read_record(next((tmp_path / "run").rglob("run.json")))
    assert record["model"]["class_path"] == "anomalib.models.image.padim.lightning_model.Padim"
    assert record["model"]["init_args"]["layers"] == ["layer1"]
    assert record["data"]["class_path"].endswith(".Folder")
    assert record["data"]["init_args"]["normal_split_ratio"] == 0.2
    assert record["training"]["region_masks"] == ""
    assert record["map"] == ""


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Path("/data/patients/x.csv"), "…/x.csv"),
        ("C:\\Users\\someone\\films", "…/films"),
        ("tables/images.csv", "tables/images.csv"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("a=/home/me/x.ckpt, b=D:\\y\\z.ckpt", "a=…/x.ckpt, b=…/z.ckpt"),
        (float("-inf"), "-inf"),
        (Colour.RED, "red"),
        (np.float32(0.5), 0.5),
        (np.zeros((2, 3)), "ndarray of the shape (2, 3), float64"),
        (torch.tensor(7), 7),
        ({"b", "a"}, ["a", "b"]),
        (range(60), "range(0, 60)"),
        (list(range(60)), [*range(50), "… 10 more"]),
        ({1: {"patient_ids": ("p1", "p2")}}, {"1": {"patient_ids": "2 values, not listed"}}),
        ({"patients": "adults"}, {"patients": "adults"}),
    ],
)  # fmt: skip
def test_values_become_plain(value: object, expected: object) -> None:
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


def test_values_without_end_or_repr_become_plain() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    endless: list = []
    endless.append(endless)
    assert plain(Broken()) == "<Broken>"
    assert "0x" not in plain(object())
    assert len(plain("x" * 5000)) <= 300
    json.dumps(plain(endless))


def test_writing_is_atomic_and_reading_refuses_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": object()})
    assert read_record(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(RunRecordError, match="cannot be read"):
        read_record(path)


def test_the_report_knows_the_lung_masks_of_older_runs(tmp_path: Path) -> None:
    record = {"training": {"lung_masks": "Lung masks of 4 images: fine."}}
    run = FinishedRun("a", tmp_path, pd.DataFrame(), None, "", tmp_path, record)
    assert run.region_quality == "Lung masks of 4 images: fine."
