"""Checkpoints are read without running them, refused in one sentence, and written whole or not at all."""

import os
import pickle
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.cli import cli
from anomalib.engine.plugins.checkpoint_io import AnomalibCheckpointIO

from anomalib_cxr.callbacks.checkpoint_choice import CheckpointChoice
from anomalib_cxr.checkpoint_files import CheckpointError, load_checkpoint
from anomalib_cxr.plugin import register

register()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def hostile(kind: str, tmp_path: Path) -> Path:
    path, content = tmp_path / "evil.ckpt", {"state_dict": {}, "hyper_parameters": {"a": Touch(tmp_path / "owned")}}
    if kind == "zip":
        torch.save(content, path)
    elif kind == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif kind == "bare":
        path.write_bytes(pickle.dumps(content))
    elif kind == "cut":
        torch.save({"state_dict": {"weight": torch.zeros(1000)}, "hyper_parameters": {}}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes(b"")
    return path


KINDS = ["zip", "legacy", "bare", "cut", "list", "empty"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_or_broken_checkpoint_is_one_sentence(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hostile(kind, tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # it must not matter what the environment says
    readers = [load_checkpoint, lambda path: AnomalibCheckpointIO().load_checkpoint(path, weights_only=None)]
    for read in readers if kind != "list" else readers[:1]:
        with pytest.raises(CheckpointError, match="is no checkpoint of an Anomalib model") as caught:
            read(path)
        said = str(caught.value)
        assert said.count("\n") == 0
        assert len(said) < 300 + len(str(path))
        assert "weights_only" not in said  # torch advises to switch the check off
        assert caught.value.__cause__ is None
        assert ("mkdir" in said) == (kind == "zip" or (kind == "legacy" and read is not load_checkpoint))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("model", ["AnatPaste", "Padim"])
def test_the_command_ends_with_that_sentence(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hostile("zip", tmp_path)
    own = ["--model.pre_trained=false", "--model.backbone=resnet18"] if model == "Padim" else []
    words = ["test", "--model", model, *own, "--data=PhantomCXR", f"--data.root={tmp_path}", "--data.num_train=2"]
    words += ["--data.val_per_class=1", "--data.test_per_class=1", "--data.image_size=64", "--data.num_workers=0"]
    words += [f"--ckpt_path={path}", f"--default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", ["anomalib", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert re.search(r"^anomalib: .*evil\.ckpt is no checkpoint .*mkdir", capsys.readouterr().err, re.MULTILINE)
    assert not (tmp_path / "owned").exists()


def test_a_kill_while_a_checkpoint_is_saved_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.ckpt"
    AnomalibCheckpointIO().save_checkpoint({"step": 1, "weight": torch.zeros(1000)}, path)

    def move_half(source: str, target: str) -> None:
        """What a move to another disk is in its middle."""
        Path(target).write_bytes(Path(source).read_bytes()[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "move", move_half)
    with pytest.raises(KeyboardInterrupt):
        AnomalibCheckpointIO().save_checkpoint({"step": 2, "weight": torch.zeros(1000)}, path)
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["model.ckpt"]


@pytest.mark.parametrize("killed_at", [1, 2, None])
def test_a_kill_while_the_chosen_one_is_published_leaves_whole_ones(
    killed_at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights" / "lightning"
    weights.mkdir(parents=True)
    (weights / "best.ckpt").write_text("the best " * 1000)
    (weights / "model.ckpt").write_text("the last " * 1000)
    whole, copies = shutil.copyfile, []

    def copy(source: Path, target: Path) -> None:
        copies.append(source)
        whole(source, target)
        if len(copies) == killed_at:
            os.truncate(target, 2000)
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", copy)
    monkeypatch.setattr("anomalib_cxr.callbacks.checkpoint_choice.ModelCheckpoint", SimpleNamespace)
    callback = SimpleNamespace(best_model_path=str(weights / "model.ckpt"))
    choice = CheckpointChoice()
    choice.best_path = str(weights / "best.ckpt")
    trainer: Any = SimpleNamespace(default_root_dir=tmp_path, checkpoint_callback=callback)
    if killed_at is None:
        choice._publish(trainer)
    else:
        with pytest.raises(KeyboardInterrupt):
            choice._publish(trainer)
    left = {path.name: path.read_text().split(" ")[1] for path in weights.iterdir()}
    assert left == {"best.ckpt": "best", "model.ckpt": "last" if killed_at else "best"} | (
        {} if killed_at == 1 else {"last.ckpt": "last"}
    )
    assert {path.stat().st_size for path in weights.iterdir()} == {9000}


def test_a_checkpoint_names_no_folder_and_may_be_moved(tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "v1" / "weights" / "lightning", tmp_path / "new" / "v1" / "weights" / "lightning"
    kept = {
        "best_path": f"{old}/best.ckpt",
        "dirpath": str(old),
        "models": {f"{old}/a.ckpt": 0.5},
        "resumed": [f"{tmp_path}/old/v0/weights/lightning/best.ckpt"],
        "text": "best.ckpt",
        "number": 3,
        "none": None,
    }
    AnomalibCheckpointIO().save_checkpoint({"state_dict": {}, "callbacks": {"Choice": kept}}, old / "model.ckpt")
    assert str(tmp_path).encode() not in (old / "model.ckpt").read_bytes()
    assert kept["dirpath"] == str(old)  # the trainer's own is not touched
    read = AnomalibCheckpointIO().load_checkpoint
    assert read(old / "model.ckpt")["callbacks"]["Choice"] == kept
    (tmp_path / "old").rename(tmp_path / "new")
    found = read(new / "model.ckpt")["callbacks"]["Choice"]
    assert found == {
        "best_path": f"{new}/best.ckpt",
        "dirpath": str(new),
        "models": {f"{new}/a.ckpt": 0.5},
        "resumed": [f"{tmp_path}/new/v0/weights/lightning/best.ckpt"],
        "text": "best.ckpt",
        "number": 3,
        "none": None,
    }
