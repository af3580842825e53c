"""What scores mean at a site: the promised false-positive rates by simulation, and the command's three verbs."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_films import write_dicom, write_png
from exported_by_hand import metadata, write_onnx
from limits_by_hand import too_bright_above
from scipy.stats import beta

from anomalib_cxr.data.phantom import render_phantom
from anomalib_cxr.deploy import ExportedDetector, Site, SiteError, commission, commissioning, predict_folder
from anomalib_cxr.deploy.__main__ import main
from anomalib_cxr.deploy.commissioning import compare, normalised
from anomalib_cxr.imaging.listing import list_radiographs


def _films(folder: Path, brightness: list[float]) -> Path:
    for number, value in enumerate(brightness):
        write_png(folder / f"{number:03d}.png", np.full((40, 40), value, np.float32))
    return folder


def _site(scores: np.ndarray) -> Site:
    return Site("Drawn", "0" * 64, tuple(np.sort(scores).tolist()))


@pytest.mark.parametrize("n", [20, 30, 50, 100])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_the_mean_false_positive_rate_is_that_of_split_conformal(n: int, rate: float) -> None:
    """Of new films of one distribution, k / (n + 1) are above the k-th highest of n; over draws its law is a beta's."""
    rng = np.random.default_rng(n)
    draws = 200
    reached = []
    for _ in range(draws):
        site = _site(rng.lognormal(size=n))
        # The exact chance of a new film above the threshold, in closed form: no second sampling error.
        threshold = site.threshold(rate)
        reached.append(0.5 * math.erfc(math.log(threshold) / math.sqrt(2)))
    k = math.floor(rate * (n + 1) + 1e-9)
    law = beta(k, n + 1 - k)
    assert law.mean() <= rate + 1e-12
    assert abs(np.mean(reached) - law.mean()) < 4 * law.std() / math.sqrt(draws)


def test_decision_and_p_value_agree_at_every_score_and_rate() -> None:
    scores = np.array([0.1, 0.2, 0.2, 0.2, 0.5, 0.7, 0.7])
    site = _site(scores)
    for score in np.linspace(0, 1, 101):
        p_value = (1 + sum(score <= each for each in scores)) / (len(scores) + 1)
        assert site.p_values([score])[0] == pytest.approx(p_value)
        for k in range(1, len(scores) + 1):
            assert (score > site.threshold(k / 8)) == (p_value <= k / 8 + 1e-12)
    assert site.threshold(0.12) == math.inf  # below 1 / 8 nothing can be promised


def test_a_site_is_commissioned_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_onnx(tmp_path / "model")
    normal = _films(tmp_path / "normal", [0.55 + 0.002 * number for number in range(20)])
    validation = tmp_path / "predictions_val.csv"
    # As a run writes it: raw scores, x; with this model's ranges z = 4 x − 2, and (1 + z / (1 + |z|)) / 2 normalised.
    rows = [f"{i}.png,normal,{0.3 + 0.001 * i}," for i in range(30)] + ["x.png,abnormal,0.9,"]
    validation.write_text("\n".join(["image,label,raw_score,score", *rows]))
    site_file = tmp_path / "site.json"
    assert main(["commission", str(model), str(normal), "-o", str(site_file), "--validation", str(validation)]) == 0
    said = capsys.readouterr().out
    assert "20 normal films scored" in said
    z = 4 * 0.3145 - 2
    assert f"{(1 + z / (1 - z)) / 2:.4f} of 30 validation normals" in said
    assert (tmp_path / "site.png").stat().st_size > 1000
    content = json.loads(site_file.read_text())
    assert content["thresholds"]["0.1"] == pytest.approx(0.55 + 0.002 * 18, abs=1e-3)
    assert str(tmp_path) not in site_file.read_text()
    assert "000.png" not in site_file.read_text()

    films = _films(tmp_path / "films", [0.56, 0.585, 0.587, 0.9])
    out = tmp_path / "out"
    assert main([str(model), str(films), "-o", str(out), "--site", str(site_file), "--rate", "0.1"]) == 0
    with (out / "predictions.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["decision"] for row in found] == ["normal", "normal", "abnormal", "abnormal"]
    assert [float(row["p_value"]) for row in found] == pytest.approx([16 / 21, 3 / 21, 2 / 21, 1 / 21], abs=1e-6)
    plain = tmp_path / "plain"
    assert main([str(model), str(films), "-o", str(plain)]) == 0
    assert {row["decision"] for row in csv.DictReader((plain / "predictions.csv").open())} == {"abnormal"}
    assert "p_value" not in (plain / "predictions.csv").read_text()


def test_a_site_says_which_of_its_films_are_assessable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model knows films darker than 0.3 alone, all of the site are brighter."""
    model = write_onnx(tmp_path / "model", described=metadata(film_limits=too_bright_above(0.3)))
    for number in range(20):
        write_png(tmp_path / "normal" / f"{number}.png", render_phantom(64, 3, number).image)
    few = tmp_path / "few.json"
    for number in range(19):
        (tmp_path / "few").mkdir(exist_ok=True)
        (tmp_path / "few" / f"{number}.png").hardlink_to(tmp_path / "normal" / f"{number}.png")
    site_file = tmp_path / "site.json"
    assert main(["commission", str(model), str(tmp_path / "normal"), "-o", str(site_file)]) == 0
    said = capsys.readouterr().out
    assert "20 of these films are not assessable by the model's own limits." in said
    assert "Here films are assessable that are like these: at most 4.8% of new normal ones are not." in said
    assert main(["commission", str(model), str(tmp_path / "few"), "-o", str(few)]) == 0
    assert "Here films are assessable" not in capsys.readouterr().out
    assert json.loads(few.read_text())["film_limits"] is None

    write_png(tmp_path / "films" / "new.png", render_phantom(64, 3, 100).image)
    write_png(tmp_path / "films" / "inverted.png", 1 - render_phantom(64, 3, 101).image)
    for name, site, expected in (
        ("model", None, {"new.png": "too bright", "inverted.png": "too bright"}),
        ("few", few, {"new.png": "too bright", "inverted.png": "too bright"}),
        ("site", site_file, {"new.png": "", "inverted.png": "grey values inverted"}),
    ):
        given = [] if site is None else ["--site", str(site)]
        assert main([str(model), str(tmp_path / "films"), "-o", str(tmp_path / name), *given, "--pictures"]) == 0
        with (tmp_path / name / "predictions.csv").open() as file:
            found = {row["image"]: row["not_assessable_because"].split("; ")[0] for row in csv.DictReader(file)}
        assert found == expected, name
    content = json.loads(site_file.read_text())
    loaded = Site.load(site_file)
    assert loaded.digest != replace(loaded, film_limits=None).digest
    site_file.write_text(json.dumps(content | {"film_limits": {"format": 99}}))
    with pytest.raises(SiteError, match=r"is no site file \(Limits of films are of format 99"):
        Site.load(site_file)


def test_another_model_and_broken_sites_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, other = write_onnx(tmp_path / "a"), write_onnx(tmp_path / "b", threshold=0.25)
    films = _films(tmp_path / "films", [0.4, 0.5, 0.6])
    site_file = tmp_path / "site.json"
    commission(ExportedDetector(model), films, progress=False).save(site_file)
    assert main([str(other), str(films), "-o", str(tmp_path / "out"), "--site", str(site_file)]) == 2
    assert "was made with another model" in capsys.readouterr().err
    with pytest.raises(SiteError, match="another model"):
        predict_folder(ExportedDetector(other), films, tmp_path / "out", site=Site.load(site_file))
    assert not (tmp_path / "out" / "predictions.csv").exists()
    content = json.loads(site_file.read_text())
    for change, message in (
        ({"scores": [0.5, float("nan")]}, "not finite and ascending"),
        ({"scores": [0.5, 0.4]}, "not finite and ascending"),
        ({"scores": []}, "not finite and ascending"),
        ({"scores": "many"}, "is no site file"),
        ({"format": 99}, "format 99"),
        ({"model_sha256": None}, "another model"),
    ):
        site_file.write_text(json.dumps(content | change))
        with pytest.raises(SiteError, match=message):
            Site.load(site_file, ExportedDetector(model))
    site_file.write_text("[]")
    with pytest.raises(SiteError, match="is no site file"):
        Site.load(site_file)
    with pytest.raises(SiteError, match=r"lies in \(0, 1\)"):
        _site(np.ones(3)).threshold(1.0)


def test_own_captures_are_no_films_and_closed_folders_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = ExportedDetector(write_onnx(tmp_path / "model"))
    film = write_dicom(tmp_path / "films" / "one.dcm", np.full((40, 40), 0.4, np.float32))
    predict_folder(detector, film, tmp_path / "out", ["dicom"], progress=False)
    (capture,) = (tmp_path / "out" / "secondary_captures").iterdir()
    capture.rename(tmp_path / "films" / "capture.dcm")
    closed = {"ward": "cannot be opened"}  # the tests may run as a user to whom nothing is closed
    monkeypatch.setattr(commissioning, "list_radiographs", lambda root: replace(list_radiographs(root), closed=closed))
    site = commission(detector, tmp_path / "films", progress=False)
    assert len(site.scores) == 1
    assert site.unreadable == 1


def test_few_films_promise_little_and_none_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_onnx(tmp_path / "model")
    films = _films(tmp_path / "films", [0.4, 0.5, 0.6])
    (films / "broken.png").write_bytes(b"no picture")
    site_file = tmp_path / "site.json"
    assert main(["commission", str(model), str(films), "-o", str(site_file)]) == 1  # one film could not be read
    said = capsys.readouterr().out
    assert "3 normal films scored, 1 could not be; p-values go down to 0.25" in said
    assert said.count("not possible with so few films") == 3
    assert json.loads(site_file.read_text())["thresholds"] == {"0.05": None, "0.1": None, "0.2": None}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["commission", str(model), str(empty), "-o", str(site_file)]) == 2
    assert "None of the 0 radiographs" in capsys.readouterr().err


def test_raw_scores_are_brought_to_the_scale_of_the_exported_model() -> None:
    from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor

    raw = torch.tensor([-3.0, 0.2, 0.7, 1.5, 40.0], dtype=torch.float64)
    metadata = {"normalisation": {"image_min": 0.2, "image_max": 1.5}, "thresholds": {"image": 0.7}}
    expected = RankPreservingPostProcessor._normalize(
        raw, *(torch.tensor(x, dtype=torch.float64) for x in (0.2, 1.5, 0.7))
    )
    assert normalised(raw.numpy(), metadata) == pytest.approx(expected.numpy())


def test_the_shift_is_that_of_two_samples() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(200)
    assert compare(before, rng.random(100)).p_value > 0.01
    moved = compare(before, 0.5 + 0.5 * rng.random(100))
    assert moved.p_value < 1e-6
    assert moved.median_here - moved.median_before == pytest.approx(0.25, abs=0.08)


def test_drift_is_noticed_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    site_file = tmp_path / "site.json"
    _site(rng.normal(0.5, 0.05, 100)).save(site_file)
    table = tmp_path / "predictions.csv"
    for late, status, word in ((0.5, 0, "No alarm."), (0.6, 1, "ALARM at film")):
        scores = [*rng.normal(0.5, 0.05, 50), *rng.normal(late, 0.05, 100)]
        table.write_text("\n".join(["image,score", *(f"{i}.png,{score}" for i, score in enumerate(scores))]))
        assert main(["drift", str(table), "--site", str(site_file)]) == status
        assert word in capsys.readouterr().out
    earlier = tmp_path / "earlier.csv"  # of the same mix: then it is no change
    mixed = rng.permutation([*rng.normal(0.5, 0.05, 50), *rng.normal(0.6, 0.05, 100)])
    for path, part in ((earlier, mixed[:75]), (table, mixed[75:])):
        path.write_text("\n".join(["image,score", *(f"{i}.png,{score}" for i, score in enumerate(part))]))
    assert main(["drift", str(table), "--site", str(site_file), "--reference", str(earlier)]) == 0
    table.write_text("image,decision\na.png,normal\n")
    assert main(["drift", str(table), "--site", str(site_file)]) == 2
    assert "no table of predictions" in capsys.readouterr().err
