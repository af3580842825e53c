"""The stock command builds a model from the checkpoint it is given, and refuses arguments that contradict it."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from anomalib.cli import AnomalibCLI
from anomalib.engine import Engine
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.models import AnatPaste, MultiResPatchSSL
from anomalib_cxr.models.multires_patch_ssl import lightning_model as multires

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
# Far from every default: what a checkpoint must bring by itself.
WORDS = ["--model.preset=best", "--model.image_size=64", "--model.backbone=resnet10t", "--model.top_q=0.5"]


@pytest.fixture(scope="module", autouse=True)
def no_download():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("arguments")
    words = ["train", "--model", "MultiResPatchSSL", *WORDS, *data(root), f"--default_root_dir={root}", *QUIET]
    AnomalibCLI(words)
    (folder,) = root.glob("MultiResPatchSSL/*/latest")
    return folder.resolve()


def data(root: Path) -> list[str]:
    return ["--data", "tiny_radiographs.TinyRadiographs", f"--data.root={root / 'films'}"]


def checkpoint_of(run: Path) -> Path:
    return run / "weights" / "lightning" / "model.ckpt"


def scores(root: Path) -> pd.Series:
    (table,) = root.rglob("predictions.csv")
    return pd.read_csv(table).set_index("image")["raw_score"]


def command(run: Path, tmp_path: Path, subcommand: str, *words: str) -> None:
    AnomalibCLI([subcommand, f"--ckpt_path={checkpoint_of(run)}", f"--default_root_dir={tmp_path}", *words, *QUIET])


def test_predict_and_test_need_no_argument_repeated(run: Path, tmp_path: Path) -> None:
    films = run.parents[2] / "films"
    command(run, tmp_path / "test", "test", "--model", "MultiResPatchSSL", *data(run.parents[2]))
    pd.testing.assert_series_equal(scores(tmp_path / "test"), scores(run))
    command(run, tmp_path / "predict", "predict", "--model", "MultiResPatchSSL", f"--data={films}")
    found = scores(tmp_path / "predict")
    found.index = [Path(name).name for name in found.index]
    pd.testing.assert_series_equal(found[scores(run).index], scores(run), check_names=False)


@pytest.mark.parametrize("subcommand", ["test", "predict", "export"])
def test_the_runs_own_config_works(run: Path, tmp_path: Path, subcommand: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = []
    monkeypatch.setattr(MultiResPatchSSL, "to_onnx", lambda self, *_, **__: exported.append(self) or tmp_path)
    more = ["--export_type=onnx", f"--export_root={tmp_path}"] if subcommand == "export" else []
    config = f"--config={run / 'config.yaml'}"
    AnomalibCLI(
        [subcommand, config, f"--ckpt_path={checkpoint_of(run)}", f"--default_root_dir={tmp_path}", *QUIET, *more]
    )
    if subcommand == "export":
        (model,) = exported
        assert model.hparams["top_q"] == 0.5
        kept = torch.load(checkpoint_of(run), weights_only=True)["state_dict"]
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    else:
        pd.testing.assert_series_equal(scores(tmp_path), scores(run))


def test_a_config_that_another_subcommand_left_works_and_does_not_hide_the_checkpoint(
    run: Path, tmp_path: Path
) -> None:
    words = ["--model", "MultiResPatchSSL", *data(run.parents[2]), "--trainer.callbacks=null"]
    command(run, tmp_path / "a", "test", *words)
    (left,) = (tmp_path / "a").rglob("config.yaml")
    assert "verbose" in left.read_text()
    hidden = yaml.safe_load(left.read_text()) | {"ckpt_path": None, "default_root_dir": str(tmp_path / "b")}
    hidden["trainer"]["default_root_dir"] = str(tmp_path / "b")
    (tmp_path / "left.yaml").write_text(yaml.safe_dump(hidden))
    AnomalibCLI(["predict", f"--ckpt_path={checkpoint_of(run)}", f"--config={tmp_path / 'left.yaml'}", *QUIET])
    pd.testing.assert_series_equal(scores(tmp_path / "b"), scores(run))


def test_an_argument_that_contradicts_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"contradicts top_q=0.25 \(trained with 0.5\): leave these arguments out"):
        command(run, tmp_path, "predict", "--model=MultiResPatchSSL", "--model.top_q=0.25", f"--data={run}")
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"model": {"class_path": "MultiResPatchSSL", "init_args": {"preset": "laptop"}}}))
    with pytest.raises(ValueError, match=r"contradicts preset='laptop' \(trained with 'best'\)"):
        command(run, tmp_path, "predict", f"--config={config}", f"--data={run}")
    with pytest.raises(ValueError, match=r"is one of .*MultiResPatchSSL and not of AnatPaste"):
        command(run, tmp_path, "predict", "--model=AnatPaste", f"--data={run}")
    with pytest.raises(ValueError, match="There is no checkpoint"):
        AnomalibCLI(["predict", "--model=AnatPaste", "--ckpt_path=gone.ckpt", f"--data={run}", *QUIET])


def test_a_training_that_goes_on_may_be_made_longer_and_nothing_else(tmp_path: Path) -> None:
    words = ["--model=AnatPaste", "--model.image_size=64", "--model.backbone=resnet10t", "--model.num_workers=0"]
    AnomalibCLI(["fit", *words, "--model.max_steps=2", *data(tmp_path), f"--default_root_dir={tmp_path / 'a'}", *QUIET])
    (half,) = (tmp_path / "a").rglob("model.ckpt")
    again = ["fit", "--model=AnatPaste", f"--ckpt_path={half}", *data(tmp_path), *QUIET]
    cli = AnomalibCLI([*again, "--model.max_steps=4", f"--default_root_dir={tmp_path / 'b'}"])
    assert cli.engine.trainer.global_step == 4
    assert cli.model.input_size == (64, 64)
    with pytest.raises(ValueError, match=r"contradicts learning_rate=0.5 \(trained with 0.03\)"):
        AnomalibCLI([*again, "--model.learning_rate=0.5"])


def test_a_preset_that_changes_later_changes_no_old_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_of(run)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = MultiResPatchSSL.load_from_checkpoint(checkpoint).eval()(images)
        changed = {**multires.PRESETS["best"], "score": "max", "distance": "euclidean", "patch_distance": 0}
        changed |= {"layers": (-1,), "patch_sizes": (16,), "image_size": 128, "max_steps": 5}
        monkeypatch.setitem(multires.PRESETS, "best", changed)
        after = MultiResPatchSSL.load_from_checkpoint(checkpoint).eval()(images)
    assert torch.equal(before.pred_score, after.pred_score)
    assert torch.equal(before.anomaly_map, after.anomaly_map)
    found = torch.load(checkpoint, weights_only=True)
    assert found["class_path"] == "anomalib_cxr.models.multires_patch_ssl.lightning_model.MultiResPatchSSL"
    assert found["hyper_parameters"]["score"] == "top_q"


def test_a_model_built_otherwise_says_which_arguments_differ(run: Path, tmp_path: Path) -> None:
    films = TinyRadiographs(run.parents[2] / "films")
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    other = MultiResPatchSSL(image_size=128, patch_sizes=(32, 64), backbone="resnet10t")
    with pytest.raises(ValueError, match=r"image_size=64 \(here 128\).* build the model with MultiResPatchSSL.load"):
        engine.test(other, datamodule=films, ckpt_path=checkpoint_of(run))
    with pytest.raises(ValueError, match=r"is one of .*MultiResPatchSSL and not of AnatPaste"):
        AnatPaste.load_from_checkpoint(checkpoint_of(run))


def test_a_file_of_weights_may_be_gone_when_its_checkpoint_is_loaded(tmp_path: Path, tiny: TinyRadiographs) -> None:
    import timm
    from safetensors.torch import save_file

    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), weights)
    model = MultiResPatchSSL(
        preset="best", image_size=64, backbone="resnet10t", pre_trained=False, weights_path=str(weights)
    )
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    engine.fit(model, datamodule=tiny)
    weights.unlink()
    (checkpoint,) = tmp_path.rglob("model.ckpt")
    loaded = MultiResPatchSSL.load_from_checkpoint(checkpoint).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images).pred_score, model.eval()(images).pred_score)
