"""A trained detector made fit for a site: scores in folds, thresholds, the larger bank, the new checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from jsonargparse import Namespace
from PIL import Image
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.metrics import read_predictions
from anomalib_cxr.models import MultiResPatchSSL
from anomalib_cxr.pipelines import Commission
from anomalib_cxr.pipelines.commission import load_detector, read_films, score_in_folds

#: Frozen, and each cell of 16 pixels compared with the same cell of the references alone.
FROZEN: dict[str, Any] = {
    "image_size": 64, "patch_sizes": (16,), "encoder_size": 16, "backbone": "resnet10t", "max_steps": 0,
    "distance": "euclidean", "patch_distance": 0, "score": "max", "bank_dtype": "float32", "seed": 3,
}  # fmt: skip
N_FILMS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    engine = Engine(default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False, logger=False)
    engine.fit(MultiResPatchSSL(**FROZEN), datamodule=TinyRadiographs(root / "data"))
    (path,) = root.glob("MultiResPatchSSL/*/v0/weights/lightning/model.ckpt")
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Normal films of another place: brighter and noisier; one cannot be read, one is hidden."""
    root = tmp_path_factory.mktemp("site")
    samples = TinyRadiographs(root / "drawn", count=N_FILMS).make_samples()
    (root / "films").mkdir()
    normal = samples[(samples["split"] == "test") & (samples["label"] == "normal")]
    for number, path in enumerate(normal["image_path"]):
        noise = np.random.default_rng(number).normal(0, 8, (64, 64))
        brighter = np.asarray(Image.open(path)) * 0.8 + 50 + noise
        Image.fromarray(brighter.clip(0, 255).astype(np.uint8)).save(root / "films" / f"{number:02d}.png")
    (root / "films" / "torn.png").write_bytes((root / "films" / "00.png").read_bytes()[:200])
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(root / "films" / ".hidden.png")
    return root / "films"


def arguments(checkpoint: Path, folder: Path, new: Path, **changed: Any) -> Namespace:
    given = {"ckpt_path": checkpoint, "films": folder, "output": new, "rate": 0.1, "bank": "extend", "folds": 4}
    return Namespace(**(given | {"export_type": None} | changed))


def cells_of(module: Any, images: torch.Tensor) -> np.ndarray:
    """Features (n, rows, cols, D) of images, shortened as the bank's are."""
    with torch.no_grad():
        return (module.model.features(images)[0] @ module.model.banks[0].components).double().numpy()


def plain_score(module: Any, cells: np.ndarray, references: np.ndarray) -> float:
    """Highest standardised distance of the cells (rows, cols, D) of one image to the same cells of the references."""
    nearest = np.sqrt(((references - cells) ** 2).sum(-1)).min(0)
    mean, std = float(module.model.score_mean[0]), float(module.model.score_std[0])
    return float((nearest.max() - mean) / std)


def test_each_film_is_scored_against_the_other_folds_and_never_against_itself(checkpoint: Path, films: Path) -> None:
    module = load_detector(checkpoint)[-1]
    images, unreadable = read_films(module, films)
    assert len(images) == N_FILMS
    assert [Path(path).name for path in unreadable] == ["torn.png"]
    before = {key: value.clone() for key, value in module.state_dict().items()}
    scores, maps = score_in_folds(module, images, 4)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())

    trained = module.model.banks[0].search.references.permute(2, 0, 1, 3).double().numpy()
    own = cells_of(module, images)
    for index in range(N_FILMS):
        others = own[[other for other in range(N_FILMS) if other % 4 != index % 4]]
        expected = plain_score(module, own[index], np.concatenate([trained, others]))
        assert float(scores[index]) == pytest.approx(expected, rel=1e-4)
    assert maps is not None
    assert torch.equal(maps.flatten(1).amax(1), scores)
    kept, _ = score_in_folds(module, images, 4, extend=False)
    assert [float(score) for score in kept] == pytest.approx(
        [plain_score(module, cells, trained) for cells in own], rel=1e-4
    )
    assert (scores <= kept + 1e-5).all()
    assert (scores < kept - 1e-3).any(), "films of the site are nearer to one another"


@pytest.mark.parametrize("bank", ["extend", "keep"])
def test_the_new_checkpoint_decides_by_films_of_the_site(
    checkpoint: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], bank: str
) -> None:
    old = checkpoint.read_bytes()
    with pytest.raises(SystemExit, match="1"):  # one film could not be read
        Commission().run(arguments(checkpoint, films, tmp_path / "new", bank=bank, rate=0.2))
    assert f"Results: {tmp_path / 'new'}" in capsys.readouterr().out
    assert checkpoint.read_bytes() == old
    report = json.loads((tmp_path / "new" / "commissioned.json").read_text())
    assert (report["films"], report["unreadable"], report["bank"], report["rate"]) == (N_FILMS, 1, bank, 0.2)
    assert report["shift"]["median_here"] > report["shift"]["median_before"]
    assert report["shift"]["films"] == 12

    module = load_detector(checkpoint)[-1]
    images, _ = read_films(module, films)
    scores = score_in_folds(module, images, 4, extend=bank == "extend")[0]
    new = MultiResPatchSSL.load_from_checkpoint(tmp_path / "new" / "model.ckpt").eval()
    size = 12 + (N_FILMS if bank == "extend" else 0)
    assert new.model.banks[0].search.references.shape[2] == size
    # Two of twelve are above: (2 + 1) / 13 > 0.2, so one may be; new films alarm with at most (1 + 1) / 13.
    threshold = float(new.post_processor.image_threshold)
    assert sorted(scores.tolist())[-2] < threshold <= sorted(scores.tolist())[-1] or bank == "none"
    assert sum(score >= threshold for score in scores.tolist()) == int(0.2 * (N_FILMS + 1)) - 1

    engine = Engine(default_root_dir=tmp_path / "run", accelerator="cpu", enable_progress_bar=False, logger=False)
    (films / "torn.png").rename(tmp_path / "torn.png")
    try:
        engine.predict(new, data_path=films, ckpt_path=tmp_path / "new" / "model.ckpt")
    finally:
        (tmp_path / "torn.png").rename(films / "torn.png")
    (path,) = (tmp_path / "run").rglob("predictions.csv")
    table = read_predictions(path).sort_values("image")
    raw = table["raw_score"].to_numpy()
    if bank == "keep":
        assert raw == pytest.approx(scores.numpy(), rel=1e-4)
    else:  # each finds itself in the bank
        itself = -float(new.model.score_mean[0] / new.model.score_std[0])
        assert raw == pytest.approx(np.full(N_FILMS, itself), abs=0.05)
    expected = [(1 + sum(one >= score for one in scores.tolist())) / (N_FILMS + 1) for score in raw]
    assert table["p_value"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rate": 0.05}, "A false-positive rate of 0.05 needs scores of at least 19 normal images, there are 12."),
        ({"folds": 1}, "at least two folds of one film, not 12 in 1."),
        ({"films": "nowhere"}, "nowhere does not exist"),
        ({"ckpt_path": "no.ckpt"}, "There is no checkpoint no.ckpt"),
        ({"output": "taken"}, "exists: give a new folder"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    checkpoint: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "model.ckpt").write_bytes(b"another")
    given = {key: Path(value) if isinstance(value, str) else value for key, value in changed.items()}
    with pytest.raises(SystemExit, match=r"^anomalib commission: ") as ended:
        Commission().run(arguments(checkpoint, films, tmp_path / "new", **given))
    assert said in str(ended.value)
    assert not (tmp_path / "new").exists()
