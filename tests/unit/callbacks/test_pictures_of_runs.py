"""Pictures of whole runs: each film's own, named below the root, and listed in the predictions."""

from pathlib import Path

import numpy as np
import pytest
from anomalib.data import Folder
from anomalib.engine import Engine
from grey_films import GreyFilms, GreyModel
from PIL import Image

from anomalib_cxr.callbacks import PredictionsWriter
from anomalib_cxr.metrics import read_predictions
from anomalib_cxr.plugin import register

FILMS = ["pat1/ser1/IM1.png", "pat2/ser1/IM1.png", "pat2/ser1/im1.png", "pat3/胸.png", f"{'ä' * 125}b.bmp"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


def engine(root: Path) -> Engine:
    return Engine(
        default_root_dir=root,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PredictionsWriter()],
    )


def draw(root: Path, films: list[str] = FILMS) -> dict[str, int]:
    """Films of one grey each."""
    greys = {film: 20 + 40 * number for number, film in enumerate(films)}
    for film, grey in greys.items():
        (root / film).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), grey, np.uint8)).save(root / film)
    return greys


def greys_of_pictures(folder: Path) -> dict[str, int]:
    """Grey of the film that the picture of each image shows."""
    table = read_predictions(folder / "predictions.csv")
    return {image: grey_of(folder / picture) for image, picture in zip(table["image"], table["picture"], strict=True)}


def grey_of(picture: Path) -> int:
    """Commonest grey of a picture's left half, the film without a map."""
    pixels = np.asarray(Image.open(picture).convert("L"))
    return int(np.bincount(pixels[pixels.shape[0] // 2 :, : pixels.shape[1] // 4].ravel()).argmax())


def test_predicting_a_folder_leaves_a_picture_of_each_film(tmp_path: Path) -> None:
    greys = draw(tmp_path / "films")
    engine(tmp_path / "run").predict(GreyModel(visualizer=True), data_path=tmp_path / "films")
    folder = next((tmp_path / "run").rglob("predictions.csv")).parent
    found = greys_of_pictures(folder)
    assert found == pytest.approx(greys, abs=1)
    assert len([path for path in (folder / "images").rglob("*.*") if path.is_file()]) == len(FILMS)
    assert (folder / "images/pat1/ser1/IM1.png").is_file()


def test_the_root_is_the_folder_that_was_given(tmp_path: Path) -> None:
    """Also where all films lie deeper."""
    draw(tmp_path / "films", ["pat1/a.png", "pat1/b.png"])
    engine(tmp_path / "run").predict(GreyModel(visualizer=True), data_path=tmp_path / "films")
    folder = next((tmp_path / "run").rglob("predictions.csv")).parent
    table = read_predictions(folder / "predictions.csv")
    assert table["image"].tolist() == ["pat1/a.png", "pat1/b.png"]
    assert table["picture"].tolist() == ["images/pat1/a.png", "images/pat1/b.png"]
    assert '"root": "\\u2026/films"' in (folder / "run.json").read_text()
    assert str(tmp_path) not in (folder / "run.json").read_text() + (folder / "predictions.csv").read_text()


def test_a_test_on_our_data_names_pictures_below_its_root(tmp_path: Path) -> None:
    engine(tmp_path / "run").test(GreyModel(visualizer=True), datamodule=GreyFilms(tmp_path / "data"))
    folder = next((tmp_path / "run").rglob("predictions.csv")).parent
    table = read_predictions(folder / "predictions.csv")
    assert table["picture"].tolist() == [f"images/{image}" for image in table["image"]]
    assert all((folder / picture).is_file() for picture in table["picture"])


def test_anomalibs_own_data_keep_their_names_and_lose_no_picture(tmp_path: Path) -> None:
    greys = draw(tmp_path / "data", ["normal/0.png", "normal/1.png", "normal/2.png", "x/p/a.png", "y/p/a.png"])
    data = Folder("films", "normal", tmp_path / "data", ["x", "y"], num_workers=0, val_split_mode="same_as_test")
    engine(tmp_path / "run").test(GreyModel(visualizer=True), datamodule=data)
    folder = next((tmp_path / "run").rglob("predictions.csv")).parent
    found = greys_of_pictures(folder)
    assert found == pytest.approx({image: greys[image] for image in found}, abs=1)
    names = sorted(path.relative_to(folder / "images").as_posix() for path in (folder / "images/p").iterdir())
    assert names[0] == "p/a.png"
    assert len(names) == 2


def test_the_next_run_of_a_model_leaves_the_pictures_of_the_last(tmp_path: Path) -> None:
    model = GreyModel(visualizer=True)
    for number, grey in enumerate((50, 200)):
        (tmp_path / f"films{number}").mkdir()
        Image.fromarray(np.full((8, 8), grey, np.uint8)).save(tmp_path / f"films{number}" / "x.png")
        engine(tmp_path / f"run{number}").predict(model, data_path=tmp_path / f"films{number}")
    for number, grey in enumerate((50, 200)):
        folder = next((tmp_path / f"run{number}").rglob("predictions.csv")).parent
        assert greys_of_pictures(folder) == pytest.approx({"x.png": grey}, abs=1)
