"""A folder with broken films is predicted without them, by loaders of any kind."""

from pathlib import Path

import numpy as np
import pytest
from anomalib.data import PredictDataset
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_cxr.imaging import RadiographError
from anomalib_cxr.models.components.scoring import ScoringMixin
from anomalib_cxr.plugin.predicting import _wrap_dataset, _wrap_predict, keep_readable


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Five films, the second and the last broken in different ways, one below."""
    (tmp_path / "below").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / ("below" if number == 3 else "") / f"{number}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "4.png").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_loaders_of_any_kind_see_readable_films_alone(films: Path, workers: int, batch_size: int) -> None:
    dataset = keep_readable(PredictDataset(films))
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=dataset.collate_fn)
    seen = [Path(path).name for batch in loader for path in batch.image_path]
    assert sorted(seen) == ["0.png", "2.png", "3.png"]
    assert sorted(dataset.unreadable) == [str(films / "1.png"), str(films / "4.png")]
    assert all(dataset.unreadable.values())


def test_the_root_that_pictures_are_named_below_stays(films: Path) -> None:
    listed = PredictDataset(films).image_filenames
    assert getattr(keep_readable(PredictDataset(films)).image_filenames, "root", None) == getattr(listed, "root", None)


def test_a_folder_of_broken_films_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(RadiographError, match="None of the 1 images can be read, the first: "):
        keep_readable(PredictDataset(tmp_path))


class Ours(ScoringMixin):
    """A detector of this package; what it does is of no concern here."""


class Theirs:
    """A detector of Anomalib's."""


@pytest.mark.parametrize("given", [True, False], ids=["model given", "model of an earlier run"])
@pytest.mark.parametrize("kind", [Ours, Theirs])
def test_our_detectors_see_a_coloured_film_in_grey_as_everywhere_else(tmp_path: Path, kind: type, given: bool) -> None:
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8))
    colour.save(tmp_path / "film.png")
    dataset_class = _wrap_dataset(PredictDataset)
    model = kind.__new__(kind)

    class Engine:
        def __init__(self) -> None:
            self.model = None if given else model

        def predict(self, model: object = None, data_path: Path | None = None) -> np.ndarray:
            return dataset_class(data_path)[0].image.numpy()

    seen = _wrap_predict(Engine.predict)(Engine(), model if given else None, data_path=tmp_path)
    stored, grey = np.moveaxis(np.asarray(colour), -1, 0), np.asarray(colour.convert("L"))
    expected = np.stack([grey] * 3) if kind is Ours else stored
    np.testing.assert_allclose(seen, expected / 255, atol=1e-6)
    outside = dataset_class(tmp_path)[0].image.numpy()
    np.testing.assert_allclose(outside, stored / 255, atol=1e-6)
