"""Names of pictures against what file systems do: each is written, on one that tells case apart and on one that not."""

import unicodedata
from pathlib import Path

import pytest

from anomalib_cxr.imaging.picture_names import name_pictures

LONG = "ä" * 125 + "b"  # 251 bytes
FILMS = {
    "equal names": ["pat1/ser1/IM1.dcm", "pat2/ser1/IM1.dcm"],
    "case": ["a/IM1.dcm", "a/im1.dcm", "A/IM1.DCM", "a/x.png", "a/X.png", "a/x.PNG"],
    "long": [f"{LONG}.dcm", f"{LONG}.dcn", f"{LONG}.png", "c" * 255, "c" * 254 + "d"],
    "unicode": [unicodedata.normalize(form, "Brücke/ß.png") for form in ("NFC", "NFD")] + ["日本/胸.dcm", "SS.png"],
    "picture of another": ["a.dcm", "a.dcm.png", "a", "a.png", "a.png.png"],
    "folder of another": ["b", "b.png/c.dcm"],
}


@pytest.mark.parametrize("films", FILMS.values(), ids=FILMS)
def test_no_picture_overwrites_another(tmp_path: Path, films: list[str]) -> None:
    names = name_pictures([tmp_path / "data" / film for film in films], tmp_path / "data")
    for number, name in enumerate(names):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(str(number))
    assert [(tmp_path / "out" / name).read_text() for name in names] == [str(i) for i in range(len(films))]
    folded = [unicodedata.normalize("NFC", name.lower()) for name in names]
    assert len(set(folded)) == len(films), "a file system that does not tell case apart would lose one"
    assert {Path(name).suffix for name in names} == {".png"}
    assert [str(Path(name).parent) for name in names] == [str(Path(film).parent) for film in films]
    shuffled = name_pictures([tmp_path / "data" / film for film in films[::-1]], tmp_path / "data")
    assert shuffled[::-1] == names


def test_names_are_the_paths_below_the_root(tmp_path: Path) -> None:
    films = ["pat1/ser1/IM1.dcm", "pat2/ser1/IM1.dcm", "pat2/x.png", "0.jpeg"]
    names = name_pictures([tmp_path / film for film in films], tmp_path)
    assert names == ["pat1/ser1/IM1.dcm.png", "pat2/ser1/IM1.dcm.png", "pat2/x.png", "0.jpeg.png"]


def test_images_outside_of_the_root_stay_in_the_folder(tmp_path: Path) -> None:
    images = [tmp_path / "data/x.png", tmp_path / "data/../other/a/x.png", tmp_path / "other/b/x.png"]
    assert name_pictures(images, tmp_path / "data") == ["x.png", "a/x.png", "b/x.png"]
    assert name_pictures(images[1:]) == ["a/x.png", "b/x.png"]
    assert name_pictures([]) == []


def test_relative_paths_are_those_of_the_working_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert name_pictures(["data/a/x.png", tmp_path / "data/b.png"], "data") == ["a/x.png", "b.png"]
