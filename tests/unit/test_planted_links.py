"""Links planted in an output folder: nothing is written to where they lead."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from anomalib_cxr.callbacks.pictures import Pictures
from anomalib_cxr.callbacks.run_record import write_json
from anomalib_cxr.csv_tables import growing_table, write_table
from anomalib_cxr.files import folder_below, write_bytes, write_text
from anomalib_cxr.plugin.run_folders import SharedRunFolder
from anomalib_cxr.run_folder import BEST_CHECKPOINT, CHECKPOINTS, PICTURES, SHEETS, STOCK_CONFIG


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file elsewhere that must stay as it is."""
    path = tmp_path / "elsewhere" / "precious.txt"
    path.parent.mkdir()
    path.write_text("precious")
    return path


def is_untouched(victim: Path) -> bool:
    return victim.read_text() == "precious" and [path.name for path in victim.parent.iterdir()] == [victim.name]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_bytes(path, b"new"),
        lambda path: write_text(path, "new"),
        lambda path: write_json(path, {"a": "new"}),
        lambda path: write_table(path, pd.DataFrame({"a": ["new"]})),
    ],
    ids=["bytes", "text", "json", "csv"],
)
def test_a_link_in_the_place_of_a_file_is_replaced(write: Any, victim: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "file"
    path.parent.mkdir()
    path.symlink_to(victim)
    write(path)
    assert is_untouched(victim)
    assert not path.is_symlink()
    assert b"new" in path.read_bytes()


def test_a_growing_table_is_never_begun_behind_a_link(victim: Path, tmp_path: Path) -> None:
    for target in (victim, victim.with_name("not there")):
        path = tmp_path / "table.csv"
        path.symlink_to(target)
        with pytest.raises(FileExistsError), growing_table(path, "a"):
            pass
        path.unlink()
    assert is_untouched(victim)


def test_folders_below_the_output_are_no_links(victim: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "disk").mkdir()
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "disk", target_is_directory=True)  # the output folder itself may be one
    (out / "a").symlink_to(victim.parent, target_is_directory=True)
    folder = folder_below(out, "a", "b")
    (folder / "file").write_text("new")
    assert is_untouched(victim)
    assert (tmp_path / "disk/a/b/file").read_text() == "new"
    assert f"{out / 'a'} was a link to {victim.parent}" in caplog.text


def test_pictures_of_a_run(victim: Path, tmp_path: Path) -> None:
    root = tmp_path / "films"
    images = [root / "a" / "1.png", root / "2.png"]
    pictures = Pictures([SimpleNamespace(image_filenames=images)], root)
    folder = tmp_path / "out" / "images"
    folder.mkdir(parents=True)
    (folder / "a").symlink_to(victim.parent, target_is_directory=True)
    (folder / "2.png").symlink_to(victim)
    for image in images:
        Image.new("L", (8, 8)).save(pictures.place(image, folder, lambda: folder / "other.png"))
    assert is_untouched(victim)
    assert (folder / "a/1.png").is_file()
    assert (folder / "2.png").is_file()


def test_what_others_write_in_the_folder_of_a_run(victim: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / CHECKPOINTS).mkdir(parents=True)
    for name in (STOCK_CONFIG, CHECKPOINTS / BEST_CHECKPOINT):
        (run / name).symlink_to(victim)
    for name in (PICTURES, SHEETS):
        (run / name).symlink_to(victim.parent, target_is_directory=True)
    (run / "notes").symlink_to(victim)  # nothing of a run's
    strategy = SimpleNamespace(broadcast=lambda value: value, barrier=lambda name: None)
    trainer: Any = SimpleNamespace(default_root_dir=str(run), strategy=strategy, is_global_zero=True)
    SharedRunFolder().setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert is_untouched(victim)
    assert [path.name for path in run.rglob("*") if path.is_symlink()] == ["notes"]
