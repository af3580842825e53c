"""An ensemble gives the mean of its members, alone, moved and exported."""

import shutil
from pathlib import Path
from typing import Any

import drawn_sets
import numpy as np
import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.data import InferenceBatch
from anomalib.engine import Engine
from anomalib.models import Padim
from scipy.special import logsumexp
from sklearn import metrics as sk
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.metrics import read_predictions
from anomalib_cxr.models import AnatPaste, Ensemble, MultiResPatchSSL

QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": False}
MODELS: dict[str, Any] = {
    "seed_1": lambda: AnatPaste(
        image_size=64, max_steps=4, steps_per_epoch=4, num_workers=0, backbone="resnet10t", seed=1, visualizer=False
    ),
    "seed_2": lambda: AnatPaste(
        image_size=64, max_steps=4, steps_per_epoch=4, num_workers=0, backbone="resnet10t", seed=2, visualizer=False
    ),
    "patches": lambda: MultiResPatchSSL(
        image_size=64, patch_sizes=[16, 32], backbone="resnet10t", max_steps=0, feature_dim=4, visualizer=False
    ),
    "padim": lambda: Padim(
        backbone="resnet10t", pre_trained=False, layers=["layer1"], n_features=8, visualizer=False,
        pre_processor=Padim.configure_pre_processor((64, 64)),
    ),
}  # fmt: skip
CLASSES = {"seed_1": AnatPaste, "seed_2": AnatPaste, "patches": MultiResPatchSSL, "padim": Padim}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> dict[str, Path]:
    """Checkpoint of each model."""
    folder = tmp_path_factory.mktemp("members")
    paths = {}
    for name, make in MODELS.items():
        engine = Engine(default_root_dir=folder / name, **QUIET)
        engine.fit(make(), datamodule=TinyRadiographs(tiny_root))
        paths[name] = Path(str(engine.best_model_path))
    return paths


def copies(trained: dict[str, Path], folder: Path, *names: str) -> list[str]:
    """Copies that a test may delete."""
    folder.mkdir(parents=True, exist_ok=True)
    return [str(shutil.copy(trained[name], folder / f"{name}.ckpt")) for name in names]


def images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def alone(trained: dict[str, Path], *names: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and maps of each member by itself, from image to normalised score."""
    predictions = []
    for name in names:
        module = CLASSES[name].load_from_checkpoint(trained[name], map_location="cpu").eval()
        with torch.no_grad():
            predictions.append(module(images()))
    return torch.stack([p.pred_score.flatten() for p in predictions]), torch.stack([p.anomaly_map for p in predictions])


@pytest.mark.parametrize("names", [("seed_1", "seed_2"), ("seed_1", "patches"), ("patches", "padim")])
def test_score_and_map_are_the_means_of_the_members(trained: dict[str, Path], names: tuple[str, ...]) -> None:
    classes = [CLASSES[name].__name__ for name in names] if "padim" in names else None
    ensemble = Ensemble([str(trained[name]) for name in names], classes).eval()
    with torch.no_grad():
        found = ensemble.model(images())
    scores, maps = alone(trained, *names)
    assert scores[0] != pytest.approx(scores[1], abs=1e-4)
    assert found.pred_score.numpy() == pytest.approx(scores.numpy().mean(axis=0), abs=1e-6)
    assert found.anomaly_map.numpy() == pytest.approx(maps.numpy().mean(axis=0), abs=1e-6)


def test_p_values_are_those_of_the_members_own_normal_images(trained: dict[str, Path]) -> None:
    names = ("seed_1", "patches")
    ensemble = Ensemble([str(trained[name]) for name in names], fusion="p_value").eval()
    with torch.no_grad():
        found = ensemble.model(images())
    expected = []
    for name in names:
        kept = torch.load(trained[name], weights_only=True)["callbacks"]["PredictionsWriter"]
        normal = np.array(kept["raw_scores"])[np.array(kept["labels"]) == 0]
        assert len(normal) > 1
        module = CLASSES[name].load_from_checkpoint(trained[name], map_location="cpu").eval()
        with torch.no_grad():
            raw = module.model(module.pre_processor(images())).pred_score.flatten().double().numpy()
        quartiles = np.subtract(*np.percentile(normal, [75, 25])) / 1.34
        width = 0.9 * min(normal.std(ddof=1), quartiles) * len(normal) ** -0.2
        logarithms = -np.logaddexp(0, (raw[:, None] - normal) / width)  # of 1 / (1 + exp(…)), which may be below 1e-308
        expected.append(np.log(len(normal)) - logsumexp(logarithms, axis=1))
    assert found.pred_score.numpy() == pytest.approx(np.mean(expected, axis=0), rel=1e-3, abs=1e-4)
    _, maps = alone(trained, *names)
    assert found.anomaly_map.numpy() == pytest.approx(maps.numpy().mean(axis=0), abs=1e-6)
    middle = ensemble.post_processor(InferenceBatch(pred_score=torch.tensor([2.9, 3.1]), anomaly_map=maps[0][:2]))
    assert middle.pred_label.tolist() == [False, True]


@pytest.mark.parametrize("fusion", ["mean", "p_value"])
def test_a_saved_ensemble_needs_no_other_file(
    trained: dict[str, Path], tmp_path: Path, tiny: TinyRadiographs, fusion: str
) -> None:
    paths = copies(trained, tmp_path / "members", "seed_1", "patches")
    ensemble = Ensemble(paths, fusion=fusion)
    before = {name: value.clone() for name, value in ensemble.model.members.state_dict().items()}
    engine = Engine(default_root_dir=tmp_path / "run", **QUIET)
    engine.fit(ensemble, datamodule=tiny)
    engine.test(ensemble, datamodule=tiny)
    after = ensemble.model.members.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the idle step changed a member"
    first = read_predictions(next((tmp_path / "run").rglob("predictions.csv")))

    moved = tmp_path / "elsewhere" / "ensemble.ckpt"
    moved.parent.mkdir()
    shutil.move(str(engine.best_model_path), moved)
    shutil.rmtree(tmp_path / "members")
    shutil.rmtree(tmp_path / "run")
    assert str(tmp_path / "members") not in str(torch.load(moved, weights_only=True)["hyper_parameters"])
    reloaded = Ensemble.load_from_checkpoint(moved, map_location="cpu")
    assert reloaded.fusion == fusion
    Engine(default_root_dir=tmp_path / "again", **QUIET).test(reloaded, datamodule=TinyRadiographs(tiny.root))
    second = read_predictions(next((tmp_path / "again").rglob("predictions.csv")))
    assert second["raw_score"].to_numpy() == pytest.approx(first["raw_score"].to_numpy(), abs=1e-6)
    assert second["score"].to_numpy() == pytest.approx(first["score"].to_numpy(), abs=1e-6)
    assert (second["decision"] == first["decision"]).all()
    threshold = float(reloaded.post_processor.image_threshold)
    assert threshold != 0.5
    assert ((second["raw_score"] > threshold) == (second["decision"] == "abnormal")).all()
    scores = second["label"] == "abnormal", second["raw_score"], second["score"]
    assert sk.roc_auc_score(*scores[:2]) == sk.roc_auc_score(scores[0], scores[2])


def test_without_a_fit_the_threshold_is_the_middle(trained: dict[str, Path]) -> None:
    ensemble = Ensemble([str(trained["seed_1"]), str(trained["seed_2"])]).eval()
    means = torch.tensor([0.1, 0.499, 0.501, 0.9])
    processed = ensemble.post_processor(InferenceBatch(pred_score=means, anomaly_map=means.reshape(4, 1, 1, 1)))
    assert processed.pred_label.tolist() == [False, False, True, True]
    assert processed.pred_score.diff().min() > 0


@pytest.mark.slow  # one is exported at each run in test_export_parity.py
@pytest.mark.parametrize("fusion", ["mean", "p_value"])
def test_an_exported_ensemble_gives_the_same(trained: dict[str, Path], tmp_path: Path, fusion: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    ensemble = Ensemble([str(trained["seed_1"]), str(trained["patches"])], fusion=fusion).eval()
    path = ensemble.to_onnx(tmp_path)
    session = runtime.InferenceSession(str(path))
    large = torch.rand(3, 3, 96, 80, generator=torch.Generator().manual_seed(1))
    for batch in (images(), large):
        with torch.no_grad():
            expected = ensemble(batch)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(None, {session.get_inputs()[0].name: batch.numpy()}), strict=True))
        assert np.ravel(found["pred_score"]) == pytest.approx(expected.pred_score.numpy(), abs=1e-4)
        assert found["anomaly_map"] == pytest.approx(expected.anomaly_map.numpy(), abs=1e-4)


def test_pretrained_members_fetch_nothing(trained: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    checkpoint = torch.load(trained["patches"], weights_only=True)
    checkpoint["hyper_parameters"] |= {"pre_trained": False, "weights_path": "/gone/weights.safetensors"}
    torch.save(checkpoint, tmp_path / "pretrained.ckpt")

    def fetch(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights are fetched")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fetch)
    ensemble = Ensemble([str(tmp_path / "pretrained.ckpt"), str(trained["seed_1"])])
    weights = ensemble.model.members[0].model.state_dict()
    assert all(
        torch.equal(value, weights[name.removeprefix("model.")])
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("model.")
    )


def test_a_pretrained_model_is_loaded_without_fetching(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = torch.load(trained["patches"], weights_only=True)
    checkpoint["hyper_parameters"] |= {"pre_trained": True}
    torch.save(checkpoint, tmp_path / "pretrained.ckpt")
    fetched = []
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: fetched.append(True))
    MultiResPatchSSL(image_size=64, patch_sizes=[16], backbone="resnet10t", pre_trained=True)
    assert fetched
    fetched.clear()
    loaded = MultiResPatchSSL.load_from_checkpoint(tmp_path / "pretrained.ckpt", map_location="cpu").state_dict()
    assert not fetched
    assert all(torch.equal(value, loaded[name]) for name, value in checkpoint["state_dict"].items())


def test_the_command_line_takes_a_list_of_checkpoints(trained: dict[str, Path], tmp_path: Path) -> None:
    drawn_sets.radiograph_table(tmp_path / "data")
    listed = f"[{trained['seed_1']},{trained['patches']}]"
    data = [f"--data.root={tmp_path / 'data'}", "--data.table=images.csv"]
    cli = AnomalibCLI(
        ["test", "--model=Ensemble", f"--model.checkpoints={listed}", "--data=RadiographTable", *data], run=False
    )
    assert isinstance(cli.model, Ensemble)
    assert len(cli.model.model.members) == 2


def test_members_of_different_splits_are_pointed_out(trained: dict[str, Path], tmp_path: Path, caplog) -> None:
    paths = copies(trained, tmp_path, "seed_1", "seed_2")
    for number, path in enumerate(paths):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["split_sha256"] = str(number)
        torch.save(checkpoint, path)
    with caplog.at_level("WARNING"):
        assert Ensemble(paths).split_sha256 is None
    assert "trained on 2 different splits" in caplog.text
    checkpoint["split_sha256"] = None
    torch.save(checkpoint, paths[1])
    with caplog.at_level("WARNING"):
        assert Ensemble(paths).split_sha256 == "0"
    assert "1 of 2 members do not say on which split they were trained" in caplog.text
    assert Ensemble([paths[0], paths[0]]).split_sha256 == "0"


def test_another_split_than_the_members_is_pointed_out(
    trained: dict[str, Path], tmp_path: Path, tiny_root: Path, caplog
) -> None:
    ensemble = Ensemble([str(trained["seed_1"]), str(trained["seed_2"])])
    for count, warned in ((12, False), (6, True)):
        root = tiny_root if count == 12 else tmp_path / "other"
        caplog.clear()
        with caplog.at_level("WARNING"):
            Engine(default_root_dir=tmp_path / "run", **QUIET).test(ensemble, datamodule=TinyRadiographs(root, count))
        assert ("trained on another split than this datamodule's" in caplog.text) == warned


def test_checkpoints_of_older_versions_are_known_by_what_they_have(trained: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = torch.load(trained["seed_1"], weights_only=False)
    del checkpoint["hyper_parameters"]["density"], checkpoint["class_path"]
    torch.save(checkpoint, tmp_path / "older.ckpt")
    ensemble = Ensemble([str(tmp_path / "older.ckpt"), str(trained["seed_2"])]).eval()
    scores, _ = alone(trained, "seed_1", "seed_2")
    with torch.no_grad():
        torch.testing.assert_close(ensemble.model(images()).pred_score.flatten(), scores.mean(0))
    # Every argument of STFPM's is also one of MultiResPatchSSL's, which does not make it one.
    checkpoint["hyper_parameters"] = {"backbone": "resnet18", "layers": ["layer1"]}
    torch.save(checkpoint, tmp_path / "stfpm.ckpt")
    with pytest.raises(ValueError, match=r"stfpm.ckpt does not say of which model it is"):
        Ensemble([str(tmp_path / "stfpm.ckpt"), str(trained["seed_2"])])


def test_bad_members_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    good = str(trained["seed_1"])
    with pytest.raises(ValueError, match="needs two or more checkpoints"):
        Ensemble([good])
    with pytest.raises(ValueError, match="fusion must be one of 'mean', 'p_value', not 'median'"):
        Ensemble([good, good], fusion="median")
    with pytest.raises(ValueError, match="There is no checkpoint"):
        Ensemble([good, str(tmp_path / "gone.ckpt")])
    (tmp_path / "torn.ckpt").write_bytes(b"torn")
    with pytest.raises(ValueError, match="is no checkpoint of an Anomalib model"):
        Ensemble([good, str(tmp_path / "torn.ckpt")])
    with pytest.raises(ValueError, match=r"name the class of each checkpoint.*Padim"):
        Ensemble([good, str(trained["padim"])])
    with pytest.raises(ValueError, match="There is no model class Nothing"):
        Ensemble([good, good], ["AnatPaste", "Nothing"])
    checkpoint = torch.load(good, weights_only=True)
    checkpoint["callbacks"].pop("PredictionsWriter")
    torch.save(checkpoint, tmp_path / "unknown.ckpt")
    with pytest.raises(ValueError, match=r"AnatPaste cannot be joined by p-values: .* got 0 scores"):
        Ensemble([good, str(tmp_path / "unknown.ckpt")], fusion="p_value")
    checkpoint["state_dict"]["post_processor.image_min"] = torch.tensor(float("nan"))
    torch.save(checkpoint, tmp_path / "raw.ckpt")
    with pytest.raises(ValueError, match="was never validated"):
        Ensemble([good, str(tmp_path / "raw.ckpt")])
    checkpoint["state_dict"].pop("model.classifier.weight")
    torch.save(checkpoint, tmp_path / "less.ckpt")
    with pytest.raises(ValueError, match="does not fit AnatPaste"):
        Ensemble([good, str(tmp_path / "less.ckpt")])
