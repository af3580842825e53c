"""Pictures of single films: what they show, what they say, and where they lie."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import ImageItem
from anomalib.engine import Engine
from grey_films import GREYS, GreyFilms, GreyModel
from PIL import Image

from anomalib_cxr.callbacks import HeatMapVisualizer
from anomalib_cxr.callbacks.film_names import film_name
from anomalib_cxr.imaging import heat_map_picture
from anomalib_cxr.metrics import read_predictions
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is handed to the drawing of each picture."""
    calls: list[dict[str, Any]] = []

    def picture(film, heat, lines, threshold, longest_side, mask, beside):
        calls.append({"film": film, "heat": heat, "lines": lines, "threshold": threshold, "mask": mask})
        return heat_map_picture(film, heat, lines, threshold, longest_side, mask, beside)

    monkeypatch.setitem(HeatMapVisualizer.picture.__globals__, "heat_map_picture", picture)
    return calls


def validated_and_tested(root: Path, visualizer: HeatMapVisualizer) -> tuple[GreyModel, GreyFilms, Path]:
    model = GreyModel(post_processor=RankPreservingPostProcessor(pixel_quantile=0.5), visualizer=visualizer)
    data = GreyFilms(root / "data")
    common: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": False}
    engine = Engine(default_root_dir=root / "run", **common)
    engine.validate(model, datamodule=data)
    engine.test(model, datamodule=data)
    return model, data, root / "run"


@pytest.mark.parametrize("names", ["path", "hash"])
def test_every_picture_says_which_film_it_is_and_what_the_table_says_of_it(
    tmp_path: Path, written: list[dict[str, Any]], names: str
) -> None:
    validated_and_tested(tmp_path, HeatMapVisualizer(names=names))
    (path,) = tmp_path.rglob("predictions.csv")
    table = read_predictions(path)
    assert len(written) == len(table) == 7
    normal = GREYS["val", "normal"]
    n_outside = 0
    for call, row in zip(written, table.to_dict("records"), strict=True):
        name = row["image"] if names == "path" else hashlib.sha256(row["image"].encode()).hexdigest()[:10]
        outside = row["raw_score"] > max(normal)
        n_outside += outside
        decision = row["decision"] + (", outside of what the model knows" if outside else "")
        p_value = (1 + sum(grey >= row["raw_score"] for grey in normal)) / (len(normal) + 1)
        facts = f"score {row['score']:.3f}, threshold 0.500, p {p_value:.3f}"
        assert call["lines"] == [name, decision, facts, "map smoothed for display"]
    assert 0 < n_outside < 7
    pictures = [picture for picture in tmp_path.rglob("images/**/*.png") if "run" in picture.parts]
    assert len(pictures) == 7, "as many as films, named by Anomalib"


def test_another_sensitivity_moves_the_thresholds_that_are_shown(written: list[dict[str, Any]]) -> None:
    module = SimpleNamespace(post_processor=RankPreservingPostProcessor(image_sensitivity=0.7, pixel_sensitivity=0.2))
    item = ImageItem(image=torch.zeros(3, 32, 32), anomaly_map=torch.zeros(32, 32), pred_score=torch.tensor(0.4))
    HeatMapVisualizer().picture(item, None, module)  # type: ignore[arg-type]
    assert written[0]["threshold"] == pytest.approx(0.8)
    assert written[0]["lines"][0] == "score 0.400, threshold 0.300"


def test_the_film_is_read_at_its_true_depth_and_proportions(tmp_path: Path, written: list[dict[str, Any]]) -> None:
    film = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    Image.fromarray(film).save(tmp_path / "deep.png")
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[4:9, 4:9] = True
    item = ImageItem(
        image=torch.rand(3, 32, 32),
        image_path=str(tmp_path / "deep.png"),
        anomaly_map=torch.rand(32, 32),
        gt_mask=mask,
    )
    picture = HeatMapVisualizer().visualize(item)
    assert np.abs(written[0]["film"] - film / 65535).max() < 1e-4
    assert (written[0]["mask"] == mask.numpy()).all()
    assert np.abs(np.asarray(picture)[:40, :60, 0] / 255 - film / 65535).max() < 0.01
    without = ImageItem(image=torch.full((3, 32, 32), 2.0), anomaly_map=torch.rand(32, 32))
    without.image[:, :16] = -1.0
    HeatMapVisualizer().visualize(without)
    assert np.unique(written[1]["film"]).tolist() == [0, 1], "a standardised image, stretched"


class DeepFilms(GreyFilms):
    """Films of 12 bits in files of 16, which only the table says."""

    def make_samples(self) -> pd.DataFrame:
        samples = super().make_samples()
        for path in samples["image_path"]:
            Image.fromarray(np.asarray(Image.open(path), np.uint16) * 16).save(path)
        return samples.assign(bits=12)


def test_the_film_is_shown_at_the_depth_that_the_table_states(tmp_path: Path, written: list[dict[str, Any]]) -> None:
    model = GreyModel(visualizer=HeatMapVisualizer())
    engine = Engine(default_root_dir=tmp_path / "run", accelerator="cpu", enable_progress_bar=False, logger=False)
    engine.test(model, datamodule=DeepFilms(tmp_path / "data"))
    greys = [*GREYS["test", "normal"], *GREYS["test", "abnormal"]]
    assert sorted(float(call["film"].mean()) for call in written) == pytest.approx(sorted(16 * g / 4095 for g in greys))


def test_what_has_no_map_has_no_picture() -> None:
    assert HeatMapVisualizer().visualize(ImageItem(image=torch.zeros(3, 8, 8), pred_score=torch.tensor(0.1))) is None


def test_names_are_those_below_the_root(tmp_path: Path) -> None:
    data = SimpleNamespace(datamodule=SimpleNamespace(root=tmp_path))
    assert film_name(tmp_path / "a" / "b.png", data) == "a/b.png"  # type: ignore[arg-type]
    assert film_name("/elsewhere/a/b.png", data) == "b.png"  # type: ignore[arg-type]
    assert film_name(tmp_path / "a" / "b.png", None) == "b.png"


def test_films_of_a_predicted_folder_are_named_below_it(tmp_path: Path, written: list[dict[str, Any]]) -> None:
    model, _, _ = validated_and_tested(tmp_path, HeatMapVisualizer())
    tested = len(written)
    for folder in ("pat1/ser1", "pat2/ser1"):
        (tmp_path / "films" / folder).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 99, np.uint8)).save(tmp_path / "films" / folder / "IM1.png")
    engine = Engine(default_root_dir=tmp_path / "new", accelerator="cpu", enable_progress_bar=False, logger=False)
    engine.predict(model, data_path=tmp_path / "films")
    assert [call["lines"][0] for call in written[tested:]] == ["pat1/ser1/IM1.png", "pat2/ser1/IM1.png"]
    assert list((tmp_path / "new").rglob("images/**/*.png")), "in the folder of its own run"


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="longest_side must be at least 32 pixels, not 8"):
        HeatMapVisualizer(longest_side=8)
    with pytest.raises(ValueError, match="names must be one of 'path', 'hash'"):
        HeatMapVisualizer(names="none")  # type: ignore[arg-type]
