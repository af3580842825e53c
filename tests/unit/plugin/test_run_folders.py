"""`latest` is a link whatever came first, and only the first of several processes makes a folder."""

from pathlib import Path

import pytest
from anomalib.engine import engine

from anomalib_cxr.plugin import register
from anomalib_cxr.plugin.run_folders import SharedRunFolder

register()


def visit(root: Path) -> Path:
    """What a test run does: find the latest folder, write into it."""
    folder = engine.resolve_versioned_path(root / "latest")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.csv").write_text("first")
    return folder


def test_a_test_before_the_first_training(tmp_path: Path) -> None:
    assert visit(tmp_path) == tmp_path / "v0"
    assert engine.create_versioned_dir(tmp_path) == tmp_path / "v1"
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "latest").resolve() == tmp_path / "v1"
    assert visit(tmp_path) == tmp_path / "v1"
    assert (tmp_path / "v0" / "predictions.csv").read_text() == "first"


def test_a_folder_in_the_place_of_the_link_is_kept(tmp_path: Path) -> None:
    (tmp_path / "v3").mkdir()
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "predictions.csv").write_text("of a test")
    assert engine.create_versioned_dir(tmp_path) == tmp_path / "v5"
    assert (tmp_path / "v4" / "predictions.csv").read_text() == "of a test"
    assert (tmp_path / "latest").resolve() == tmp_path / "v5"


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_makes_a_folder(tmp_path: Path, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalib_cxr.plugin.run_folders.is_first_process", lambda: first)
    engine.create_versioned_dir(tmp_path)
    engine.resolve_versioned_path(tmp_path / "latest")
    assert sorted(path.name for path in tmp_path.iterdir()) == (["latest", "v0"] if first else [])


def test_the_engine_lets_the_processes_agree_before_all_else(tmp_path: Path) -> None:
    made = engine.Engine(default_root_dir=tmp_path)
    made._setup_anomalib_callbacks()
    assert isinstance(made._cache.args["callbacks"][0], SharedRunFolder)
