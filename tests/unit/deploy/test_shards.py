"""A folder divided among runs: each film in one shard, by its path alone; what does not belong together is refused."""

import csv
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from drawn_films import ramp, write_png
from exported_by_hand import write_onnx

from anomalib_cxr.deploy import ExportedDetector, folder, predict_folder
from anomalib_cxr.deploy.__main__ import main
from anomalib_cxr.deploy.shards import Shard, ShardError, merge_shards

NAMES = ["a.png", "b.png", "ward/c.png", "ward/d.png", "ward/=e.png", "Jürgen, 2.png"]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        write_png(tmp_path / "films" / name, ramp(40, 40, 0.1, 0.4 + 0.2 * number))
    (tmp_path / "films" / "ward" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "films"


@pytest.fixture
def shards(onnx_model: Path, films: Path, tmp_path: Path) -> Path:
    """The output folder of three shards."""
    out = tmp_path / "out"
    for index in (1, 2, 3):
        predict_folder(ExportedDetector(onnx_model), films, out, (), progress=False, shard=Shard(index, 3))
    return out


def images(table: Path) -> list[str]:
    with table.open(encoding="utf-8", newline="") as file:
        return [row["image"].removeprefix("'") for row in csv.DictReader(file)]


def change(record: Path, **changes: object) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


def test_a_film_has_the_shard_that_its_hash_says(films: Path, shards: Path) -> None:
    seen = []
    for index in (1, 2, 3):
        place = shards / "shards" / f"{index}-of-3"
        for name in images(place / "predictions.csv") + images(place / "unreadable.csv"):
            assert int(sha256(name.encode()).hexdigest()[:16], 16) % 3 == index - 1
            seen.append(name)
    assert sorted(seen) == sorted([*NAMES, "ward/broken.png"])


def test_shards_are_of_like_size() -> None:
    held = [sum(Shard(index, 8).holds(f"p{number}/film.dcm") for number in range(4000)) for index in range(1, 9)]
    assert sum(held) == 4000
    assert 400 < min(held) <= max(held) < 600


def test_joined_tables_are_those_of_one_run(
    onnx_model: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([str(onnx_model), str(films), "-o", str(whole)]) == 1
    status = [main([str(onnx_model), str(films), "-o", str(out), "--shard", f"{i}/9"]) for i in range(9, 0, -1)]
    assert sorted(status) == [0] * 8 + [1], "of which some are empty"
    capsys.readouterr()
    assert main(["merge", str(out)]) == 1
    said = capsys.readouterr()
    assert said.out == f"6 images joined; results in {out}\n"
    assert said.err.startswith("1 files could not be read")
    for name in ("predictions.csv", "unreadable.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    for picture in images(out / "predictions.csv"):
        assert (out / "heat_maps" / f"{picture}.png").is_file()
    assert main(["merge", str(out)]) == 2
    assert "exists: move it away to join the shards again" in capsys.readouterr().err


def test_a_shard_that_was_cut_off_begins_anew_and_one_that_is_done_is_kept(
    onnx_model: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, out, shard = ExportedDetector(onnx_model), tmp_path / "out", Shard(1, 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder._Draw, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_folder(detector, films, out, progress=False, shard=shard)
    with pytest.raises(ShardError, match="1-of-1 was not done: run it again"):
        merge_shards(out)
    predict_folder(detector, films, out, progress=False, shard=shard)
    assert merge_shards(out) == (6, 1)
    for name in ("predictions.csv", "unreadable.csv"):
        (out / name).unlink()
    with pytest.raises(FileExistsError, match="the shard is done"):
        predict_folder(detector, films, out, progress=False, shard=shard)


def test_holes_and_overlaps_are_refused(shards: Path, tmp_path: Path) -> None:
    places = shards / "shards"
    shutil.move(places / "2-of-3", tmp_path / "away")
    with pytest.raises(ShardError, match=r"^Of 3 shards 1 are not there \(2\): run them first\.$"):
        merge_shards(shards)
    shutil.copytree(places / "3-of-3", places / "2-of-3")
    with pytest.raises(ShardError, match=r"3-of-3 and .*2-of-3 are both shard 3 of 3: move one of them away\.$"):
        merge_shards(shards)
    change(places / "2-of-3" / "shard.json", number=2)
    with pytest.raises(ShardError, match="which is of another shard"):
        merge_shards(shards)
    shutil.rmtree(places / "2-of-3")
    shutil.copytree(tmp_path / "away", places / "1-of-2")
    change(places / "1-of-2" / "shard.json", number=1, parts=2)
    with pytest.raises(ShardError, match=r"is one of 3 shards and .* one of 2, so that films would be there twice"):
        merge_shards(shards)
    shutil.move(places / "1-of-2", tmp_path / "other")
    shutil.move(tmp_path / "away", places / "2-of-3")
    assert merge_shards(shards) == (6, 1)


def test_shards_of_other_models_and_folders_are_refused(
    shards: Path, films: Path, onnx_model: Path, tmp_path: Path
) -> None:
    place, shard = shards / "shards" / "2-of-3", Shard(2, 3)
    other = ExportedDetector(write_onnx(tmp_path / "other", threshold=0.3))
    for detector, more, what in ((other, [], "model"), (ExportedDetector(onnx_model), ["new.png"], "folder")):
        for name in more:
            write_png(films / name, ramp(40, 40, 0.1, 0.5))
        shutil.rmtree(place)
        predict_folder(detector, films, shards, (), progress=False, shard=shard)
        with pytest.raises(ShardError, match=rf"2-of-3 was made with another {what} than .*1-of-3 \("):
            merge_shards(shards)
    assert not (shards / "predictions.csv").exists()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda place: (place / "predictions.csv").write_text("image,score\n"), "was changed since its shard was done"),
        (lambda place: (place / "unreadable.csv").unlink(), "unreadable.csv is missing"),
        (lambda place: (place / "shard.json").write_text("{}"), "shard.json cannot be read"),
        (lambda place: change(place / "shard.json", made_with=[]), "shard.json cannot be read"),
    ],
)
def test_a_shard_that_was_changed_is_refused(shards: Path, break_it, said: str) -> None:
    break_it(shards / "shards" / "2-of-3")
    with pytest.raises(ShardError, match=said):
        merge_shards(shards)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/3/5", "-1/3", "1/0"])
def test_what_names_no_shard_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["model.onnx", "films", "-o", str(tmp_path), f"--shard={text}"]) == 2
    assert f"'{text}' names no shard: give i/n" in capsys.readouterr().err
    assert main(["merge", str(tmp_path)]) == 2
    assert "There are no shards in" in capsys.readouterr().err
