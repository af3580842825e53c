"""Films that should not be judged by their scores, from the fit to the exported file, and in all that a run leaves."""

import csv
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from drawn_films import write_dicom
from jsonargparse import Namespace
from one_trace import one_trace
from PIL import Image
from pydicom import dcmread
from torchvision.transforms.v2 import Compose, Normalize, Resize
from toy_detector import ToyDetector

from anomalib_cxr.anatomy.assessable import FEWEST, LIMITS_KEY
from anomalib_cxr.callbacks import HeatMapVisualizer, film_assessor
from anomalib_cxr.callbacks.film_assessor import FilmAssessor
from anomalib_cxr.data import RadiographDataModule
from anomalib_cxr.data.phantom import render_phantom
from anomalib_cxr.deploy import ExportedDetector, predict_folder, read_metadata
from anomalib_cxr.imaging import heat_map_picture, read_radiograph
from anomalib_cxr.metrics import read_predictions
from anomalib_cxr.pipelines.commission import Commission
from anomalib_cxr.plugin.ending import last_lines

SIDE, TRAINING = 64, 30
FAULTY = {"inverted": "grey values inverted", "upside_down": "upside down"}


class Films(RadiographDataModule):
    """Drawn films; of the test films some are spoilt."""

    def __init__(self, root: Path, training: int = TRAINING) -> None:
        super().__init__(root=root, train_batch_size=8, eval_batch_size=3, num_workers=0)
        self.training = training

    def make_samples(self) -> pd.DataFrame:
        self.root.mkdir(parents=True, exist_ok=True)
        rows = []
        named = [("train", "normal", f"train_{number}") for number in range(self.training)]
        named += [("val", label, f"val_{label}") for label in ("normal", "abnormal")]
        named += [("test", "normal", "plain"), ("test", "abnormal", "nodule")]
        named += [("test", "normal", name) for name in FAULTY]
        for number, (split, label, name) in enumerate(named):
            film = render_phantom(SIDE, 5, number, "nodule" if label == "abnormal" else None).image
            film = {"inverted": 1 - film, "upside_down": film[::-1, ::-1]}.get(name, film)
            path = self.root / f"{name}.png"
            if not path.exists():
                Image.fromarray((film * 65535).astype(np.uint16)).save(path)
            row = {"image_path": str(path), "label": label, "split": split, "patient_id": name}
            rows.append(row | {"findings": "", "mask_path": ""})
        return pd.DataFrame(rows)


class Run(NamedTuple):
    root: Path
    model: ToyDetector
    folder: Path
    checkpoint: Path
    lines: list[list[str]]
    last: list[str]

    @property
    def table(self) -> pd.DataFrame:
        return read_predictions(self.folder / "predictions.csv").set_index("image")


def engine(root: Path, **more: Any) -> Engine:
    return Engine(default_root_dir=root, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("assessed")
    lines: list[list[str]] = []

    def picture(film: Any, heat: Any, said: list[str], *rest: Any, **more: Any) -> Any:
        lines.append(list(said))
        return heat_map_picture(film, heat, said, *rest, **more)

    model, running = ToyDetector(image_size=SIDE), engine(root / "run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(HeatMapVisualizer.picture.__globals__, "heat_map_picture", picture)
        running.train(model, datamodule=Films(root / "films"))
    (table,) = root.rglob("predictions.csv")
    checkpoint = table.parent / "weights/lightning/model.ckpt"
    return Run(root, model, table.parent, checkpoint, lines, last_lines(running.trainer))


def test_table_pictures_and_last_lines_say_so(run: Run) -> None:
    table = run.table
    assert list(table.columns[-2:]) == ["assessable", "not_assessable_because"]
    for name in ("plain", "nodule"):
        assert table.loc[f"{name}.png", "assessable"] == "yes"
        assert table.loc[f"{name}.png", "not_assessable_because"] == ""
        assert table.loc[f"{name}.png", "decision"] in {"normal", "abnormal"}
    said = {lines[0]: lines for lines in run.lines}
    for name, reason in FAULTY.items():
        row = table.loc[f"{name}.png"]
        assert (row["assessable"], row["decision"]) == ("no", "not assessable")
        assert row["not_assessable_because"].split("; ")[0] == reason
        assert np.isfinite(row["raw_score"])
        assert said[f"{name}.png"][1].startswith(f"not assessable: {row['not_assessable_because']}")
        assert f"score {row['score']:.3f}" in said[f"{name}.png"][2]
    assert said["plain.png"][1].startswith(table.loc["plain.png", "decision"])
    with Image.open(run.folder / "sheets" / "heat_maps.png") as sheet:
        assert sheet.size[0] > 0
    assert not [line for line in run.last if "scored" in line]  # that is of a prediction


def test_scores_are_what_they_are_without(run: Run, tmp_path: Path) -> None:
    engine(tmp_path, callbacks=[FilmAssessor(most=0)]).train(
        ToyDetector(image_size=SIDE), datamodule=Films(run.root / "films")
    )
    (path,) = tmp_path.rglob("predictions.csv")
    without = read_predictions(path).set_index("image")
    for column in ("raw_score", "score"):
        assert without[column].tolist() == run.table[column].tolist()
    assert set(without["assessable"]) == set(without["not_assessable_because"]) == {""}
    assert set(without["decision"]) <= {"normal", "abnormal"}
    assert LIMITS_KEY not in torch.load(next(tmp_path.rglob("model.ckpt")), weights_only=True)


def test_the_checkpoint_keeps_the_limits(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = torch.load(run.checkpoint, weights_only=True)
    assert run.model.film_limits is not None
    assert kept[LIMITS_KEY] == run.model.film_limits.record()
    assert kept[LIMITS_KEY]["films"] == TRAINING
    loaded = ToyDetector.load_from_checkpoint(run.checkpoint)
    assert loaded.film_limits is not None
    assert loaded.film_limits.record() == kept[LIMITS_KEY]

    films = tmp_path / "films"
    films.mkdir()
    for name in run.table.index:
        (films / name).hardlink_to(run.root / "films" / name)
    running = engine(tmp_path / "again")
    running.predict(ToyDetector(image_size=SIDE), data_path=films, ckpt_path=run.checkpoint)
    (path,) = (tmp_path / "again").rglob("predictions.csv")
    again = read_predictions(path).set_index("image").loc[run.table.index]
    columns = ["raw_score", "assessable", "not_assessable_because"]
    pd.testing.assert_frame_equal(again[columns], run.table[columns])
    assert last_lines(running.trainer)[0].endswith(f"{len(FAULTY)} not assessable")

    del kept[LIMITS_KEY]  # as an older version left it
    torch.save(kept, tmp_path / "old.ckpt")
    with caplog.at_level(logging.INFO):
        engine(tmp_path / "old").test(
            ToyDetector(image_size=SIDE), datamodule=Films(run.root / "films"), ckpt_path=tmp_path / "old.ckpt"
        )
    assert "Films are not assessed: these weights have no limits" in caplog.text
    (path,) = (tmp_path / "old").rglob("predictions.csv")
    old = read_predictions(path).set_index("image")
    assert set(old["assessable"]) == {""}
    assert old["raw_score"].tolist() == run.table["raw_score"].tolist()


def test_an_exported_model_says_the_same(run: Run, tmp_path: Path) -> None:
    with one_trace():
        exported = engine(tmp_path).export(
            ToyDetector(image_size=SIDE), ExportType.ONNX, export_root=tmp_path / "export", ckpt_path=run.checkpoint
        )
    assert exported is not None
    assert run.model.film_limits is not None
    assert read_metadata(exported)[LIMITS_KEY] == run.model.film_limits.record()
    films = tmp_path / "films"
    for name in ("plain", *FAULTY):
        write_dicom(films / f"{name}.dcm", read_radiograph(run.root / "films" / f"{name}.png"))
    done = predict_folder(ExportedDetector(exported, threads=1), films, tmp_path / "out", ("png", "dicom"), False)
    assert (done.images, done.not_assessable) == (3, 2)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = {Path(row["image"]).stem: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        of_run = run.table.loc[f"{name}.png"]
        for column in ("decision", "assessable", "not_assessable_because"):
            assert row[column] == of_run[column]
        capture = dcmread(tmp_path / "out" / "secondary_captures" / f"{name}.dcm.dcm")
        because = of_run["not_assessable_because"]
        assert ("not assessable" in capture.ImageComments) == (name in FAULTY)
        assert because in capture.ImageComments


class Standardised(ToyDetector):
    """As Anomalib's own models: what comes to the model is no brightness."""

    @staticmethod
    def configure_pre_processor(image_size: Any = None) -> PreProcessor:
        del image_size
        return PreProcessor(transform=Compose([Resize((SIDE, SIDE)), Normalize([0.5] * 3, [0.2] * 3)]))


def test_films_are_looked_at_before_they_are_standardised(run: Run, tmp_path: Path) -> None:
    model = Standardised(image_size=SIDE)
    model.film_limits = run.model.film_limits
    engine(tmp_path).test(model, datamodule=Films(run.root / "films"))
    (path,) = tmp_path.rglob("predictions.csv")
    table = read_predictions(path).set_index("image")
    assert table["not_assessable_because"].tolist() == run.table["not_assessable_because"].tolist()
    assert table["raw_score"].tolist() != run.table["raw_score"].tolist()


def test_several_processes_look_at_what_one_does_in_its_order(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Films(run.root / "films", training=22)
    data.setup()

    def trainer(rank: int, processes: int) -> Any:
        return SimpleNamespace(datamodule=data, global_rank=rank, world_size=processes, is_global_zero=rank == 0)

    # What films look like and what limits are made of it is for other tests.
    monkeypatch.setattr(film_assessor, "look_at_training_film", lambda film, number: (number, float(film.mean())))
    fix = staticmethod(lambda looks: SimpleNamespace(looks=looks, promised_rate=0.0))
    monkeypatch.setattr(film_assessor, "FilmLimits", SimpleNamespace(fix=fix))
    alone: Any = film_assessor._fix_limits(trainer(0, 1), run.model, 400)
    assert [number for number, _ in alone.looks] == list(range(22))
    assert len({mean for _, mean in alone.looks}) == 22
    some: Any = film_assessor._fix_limits(trainer(0, 1), run.model, 20)
    means = [mean for _, mean in alone.looks]
    assert [mean for _, mean in some.looks] == [means[place] for place in np.linspace(0, 21, 20).round().astype(int)]

    shares: list[Any] = []

    def gather_own(own: Any) -> Any:
        shares.append(own)
        raise InterruptedError

    monkeypatch.setattr(film_assessor, "gather_objects", gather_own)
    for rank in range(3):
        with pytest.raises(InterruptedError):
            film_assessor._fix_limits(trainer(rank, 3), run.model, 400)
    assert [len(share) for share in shares] == [8, 7, 7]

    def joined(*first: Any) -> Any:
        return lambda own: shares if isinstance(own, list) else [*first, own]

    monkeypatch.setattr(film_assessor, "gather_objects", joined())
    together: Any = film_assessor._fix_limits(trainer(0, 3), run.model, 400)
    assert together.looks == alone.looks
    monkeypatch.setattr(film_assessor, "gather_objects", joined(together))
    assert film_assessor._fix_limits(trainer(1, 3), run.model, 400) is together


def test_too_few_training_films_are_said_to_be(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Films(run.root / "films", training=19)
    data.setup()
    trainer: Any = SimpleNamespace(datamodule=data, global_rank=0, world_size=1, is_global_zero=True)
    with caplog.at_level(logging.INFO):
        assert film_assessor._fix_limits(trainer, run.model, 400) is None
    assert "19 normal training films say too little" in caplog.text
    with pytest.raises(ValueError, match="most must be 0 or more films, not -1"):
        FilmAssessor(most=-1)


def test_a_commissioned_detector_goes_by_the_films_of_its_site(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A site whose films all lie on their side."""
    films = tmp_path / "site"
    films.mkdir()
    for number in range(FEWEST):
        film = np.rot90(render_phantom(SIDE, 6, number).image)
        Image.fromarray((film * 255).astype(np.uint8)).save(films / f"{number}.png")
    given = {"ckpt_path": run.checkpoint, "films": films, "output": tmp_path / "new", "rate": 0.1}
    Commission().run(Namespace(**given, bank="keep", folds=10, export_type=None))
    assert f"{FEWEST} normal films set the thresholds" in capsys.readouterr().out
    limits = ToyDetector.load_from_checkpoint(tmp_path / "new" / "model.ckpt").film_limits
    assert limits is not None
    assert limits.films == FEWEST
    upright = render_phantom(SIDE, 6, 100).image
    assert limits.assess(np.ascontiguousarray(np.rot90(upright))).assessable
    assert not limits.assess(upright).assessable
    assert run.model.film_limits is not None
    assert run.model.film_limits.assess(upright).assessable
