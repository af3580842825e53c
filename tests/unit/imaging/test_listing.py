"""One listing of radiographs: every folder once, by its own name where it has one."""

import os
from pathlib import Path

import pytest

from anomalib_cxr.data.files import scan_images
from anomalib_cxr.imaging.listing import list_radiographs


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_a_link_does_not_take_the_place_of_the_folder_it_leads_to(tmp_path):
    """Whatever their order, and however deep the folder lies: the images keep the name that labels them."""
    touch(tmp_path, "normal/a.png", "zoo/deep/normal/b.png")
    (tmp_path / "latest").symlink_to(tmp_path / "normal", target_is_directory=True)
    (tmp_path / "abc").symlink_to(tmp_path / "zoo/deep", target_is_directory=True)
    scan = list_radiographs(tmp_path)
    assert scan.images == ["normal/a.png", "zoo/deep/normal/b.png"]
    assert scan.loops == ["abc", "latest"]


def test_links_to_elsewhere_are_followed_once_and_circles_end(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    touch(root, "a.png")
    touch(elsewhere, "b.png", "below/c.png")
    (elsewhere / "back").symlink_to(root, target_is_directory=True)
    (elsewhere / "below/up").symlink_to(elsewhere, target_is_directory=True)
    for name in ("one", "two"):
        (root / name).symlink_to(elsewhere, target_is_directory=True)
    (root / "inner").symlink_to(elsewhere / "below", target_is_directory=True)
    scan = list_radiographs(root)
    # "inner" is the first link to that folder, so "one" does not list it again.
    assert scan.images == ["a.png", "inner/c.png", "one/b.png"]
    by_hand = {Path(folder, name).resolve() for folder, _, names in os.walk(tmp_path) for name in names}
    assert {(root / image).resolve() for image in scan.images} == by_hand


def test_hidden_copies_are_passed_over_and_counted(tmp_path):
    touch(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "__MACOSX/._a.jpg", ".Trashes/a.jpg", "ward/.AppleDouble/b.jpg")
    touch(tmp_path, "ward/b.jpg", "notes.txt")
    scan = list_radiographs(tmp_path)
    assert scan.images == ["a.jpg", "ward/b.jpg"]
    assert scan.ignored == 3
    assert sorted(scan.hidden) == [".Trashes", "__MACOSX", "ward/.AppleDouble"]


def test_a_closed_folder_is_noted_and_ends_a_data_set(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "ward/b.png")
    real = os.scandir

    def refused(path):
        if Path(path).name == "ward":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refused)
    scan = list_radiographs(tmp_path)
    assert scan.images == ["a.png"]
    assert scan.closed == {"ward": f"{tmp_path / 'ward'} cannot be opened: Permission denied"}
    with pytest.raises(PermissionError, match=r"1 folders are closed, the first: .*ward cannot be opened"):
        scan_images(tmp_path)
