"""`anomalib prepare` from its own command line: what it stores, says and returns."""

from pathlib import Path

import drawn_sets
import pytest

from anomalib_cxr.data import RadiographTable
from anomalib_cxr.pipelines import Prepare


def prepare(root: Path, *arguments: str) -> None:
    data = [f"--data.root={root}", "--data.table=images.csv", f"--data.cache_dir={root}/cache", "--data.cache_size=16"]
    parser = Prepare.get_parser()
    Prepare().run(parser.parse_args(["--data=anomalib_cxr.data.RadiographTable", *data, *arguments]))


def test_all_images_are_stored_and_counted(tmp_path, capsys, monkeypatch):
    drawn_sets.radiograph_table(tmp_path)
    prepare(tmp_path)
    assert capsys.readouterr().out == "RadiographTable: 24 of 24 images are in the cache.\n"
    monkeypatch.setattr("anomalib_cxr.imaging.cache.read_radiograph", None)  # from here on only the cache
    data = RadiographTable(tmp_path, table="images.csv", cache_dir=tmp_path / "cache", cache_size=16, num_workers=0)
    data.setup()
    assert all(item.image.shape == (3, 16, 16) for item in data.test_data)


def test_unreadable_images_fail_or_are_listed_last(tmp_path, capsys):
    drawn_sets.radiograph_table(tmp_path)
    (tmp_path / "images/003.png").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        prepare(tmp_path)
    assert stop.value.code == 1
    assert capsys.readouterr().out == "RadiographTable: 23 of 24 images are in the cache.\n"
    prepare(tmp_path, "--data.on_error=skip")
    first, head, reason = capsys.readouterr().out.splitlines()
    assert first == "RadiographTable: 23 of 23 images are in the cache."
    assert head == "RadiographTable: 1 images could not be read and were skipped:"
    assert f"{tmp_path}/images/003.png" in reason
    assert "it is empty" in reason
