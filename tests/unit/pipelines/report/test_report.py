"""The report: figures against scikit-learn, pictures by their colours, nothing that a browser could fetch or run."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_runs import HOSTILE, colour, draw_run, two_runs
from PIL import Image
from sklearn import metrics as sk

from anomalib_cxr.metrics import delong_test, image_level, image_metrics, read_predictions, write_predictions
from anomalib_cxr.metrics.bootstrap import Run
from anomalib_cxr.metrics.image_level import ImageMetric
from anomalib_cxr.pipelines import SUBCOMMANDS
from anomalib_cxr.pipelines.cross_validation.plan import CrossValidationJob
from anomalib_cxr.pipelines.cross_validation.table import Evaluated, make_tables, to_markdown
from anomalib_cxr.pipelines.report.evaluation import Bootstrap, holm
from anomalib_cxr.pipelines.report.pictures import match_pictures
from anomalib_cxr.pipelines.report.pipeline import Report, make_report

FEW = Bootstrap(draws=60)
_VOID = {"meta", "br", "img", "wbr"}


class Page(HTMLParser):
    """Every element with its attributes and text, in order; a plain reader of what a browser would read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[dict] = []
        self.open: list[int] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append({"tag": tag, "text": "", "path": list(self.open), **dict(attrs)})
        if tag not in _VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()]["tag"] == tag

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.elements[index]["text"] += data

    def all(self, tag: str) -> list[dict]:
        return [element for element in self.elements if element["tag"] == tag]

    def inside(self, index: int, tag: str) -> list[dict]:
        return [e for e in self.elements if e["tag"] == tag and index in e["path"]]

    def row(self, first: str, number: int = 0) -> list[str]:
        """Texts of the cells of the ``number``-th row that begins with a text."""
        found = []
        for index, element in enumerate(self.elements):
            cells = self.inside(index, "td") if element["tag"] == "tr" else []
            if cells and cells[0]["text"] == first:
                found.append([cell["text"] for cell in cells])
        return found[number]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_runs(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def page(results: Path) -> Page:
    assert make_report([results], results / "report.html", bootstrap=FEW) == {}
    return Page(results / "report.html")


def test_nothing_is_fetched_or_run_and_text_stays_text(page: Page) -> None:
    assert not page.all("script")
    assert {element["tag"] for element in page.elements}.isdisjoint(
        {"link", "iframe", "object", "embed", "base", "form"}
    )
    for element in page.elements:
        assert not [name for name in element if name.startswith("on")]
        assert element.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert element.get("href", "#").startswith("#")
    assert "url(" not in page.all("style")[0]["text"]
    (policy,) = [e["content"] for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert any(HOSTILE in cell["text"] for cell in page.all("td"))
    assert any(HOSTILE in text["text"].replace('\\"', '"') for text in page.all("pre"))
    anchors = {element["id"] for element in page.elements if "id" in element}
    assert {element["href"][1:] for element in page.all("a")} <= anchors


@pytest.mark.parametrize("name", ["good", "weak"])
def test_figures_are_those_of_scikit_learn(results: Path, page: Page, name: str) -> None:
    folder = results / "drawn" / name / "seed_0"
    test, val = (read_predictions(folder / f"predictions{part}.csv") for part in ("", "_val"))
    truth, scores = test["label"] == "abnormal", test["raw_score"]
    f1 = {t: sk.f1_score(val["label"] == "abnormal", val["raw_score"] >= t) for t in sorted(val["raw_score"])[::-1]}
    called = scores >= max(f1, key=lambda t: f1[t])
    overview = page.row(f"{name}/seed_0")
    expected = [
        sk.roc_auc_score(truth, scores),
        sk.average_precision_score(truth, scores),
        sk.f1_score(truth, called),
        sk.recall_score(truth, called),
        sk.recall_score(~truth, ~called),
    ]
    assert overview[1:3] == ["30", "24"]
    assert [cell[:5] for cell in overview[3:8]] == [f"{value:.3f}" for value in expected]
    for cell in overview[3:8]:
        value, low, high = re.fullmatch(r"(\d\.\d{3})(\d\.\d{3})–(\d\.\d{3})", cell).groups()
        assert low <= value <= high
    finding = page.row("edema", ["good", "weak"].index(name))
    used = (test["label"] == "normal") | (test["findings"] == "edema")
    assert finding[1] == str(int((test["findings"] == "edema").sum()))
    assert finding[3][:5] == f"{sk.roc_auc_score(truth[used], scores[used]):.3f}"
    rare = page.row(f"rare {HOSTILE}", ["good", "weak"].index(name))
    assert rare[1] == "2"
    assert re.fullmatch(r"\d\.\d{3}", rare[3]), "an interval of two cases"


def test_the_runs_are_compared(results: Path, page: Page) -> None:
    good, weak = (read_predictions(results / "drawn" / name / "seed_0/predictions.csv") for name in ("good", "weak"))
    expected = delong_test(good["label"] == "abnormal", good["raw_score"], weak["raw_score"])
    row = page.row("good/seed_0 − weak/seed_0")
    assert row[1].startswith(f"{expected.difference:+.3f}")
    assert row[2] == f"{expected.z:.2f}"
    assert row[3] == row[4] == (f"{expected.p_value:.4f}" if expected.p_value >= 1e-4 else "< 0.0001")


def test_the_drawn_curve_passes_through_the_points_of_scikit_learn(results: Path, page: Page) -> None:
    test = read_predictions(results / "drawn/good/seed_0/predictions.csv")
    x, y, _ = sk.roc_curve(test["label"] == "abnormal", test["raw_score"])
    svgs = [i for i, e in enumerate(page.elements) if e["tag"] == "svg" and e["aria-label"].startswith("sensitivity")]
    line = next(e for e in page.inside(svgs[1], "polyline") if e["stroke-width"] == "2")  # the first compares runs
    points = np.array([[float(n) for n in pair.split(",")] for pair in line["points"].split()])
    frame = page.inside(svgs[1], "line")
    (left, right), (bottom, top) = (
        [f(float(e[a]) for e in frame for a in (f"{c}1", f"{c}2")) for f in order]
        for c, order in (("x", (min, max)), ("y", (max, min)))
    )
    drawn_x, drawn_y = (points[:, 0] - left) / (right - left), (points[:, 1] - bottom) / (top - bottom)
    highest = [y[x <= rate + 1e-9].max() for rate in x]
    assert np.interp(x, drawn_x, drawn_y) == pytest.approx(highest, abs=0.15)  # steps are sloped by half a percent
    assert np.interp(np.r_[0.0, 1.0], drawn_x, drawn_y) == pytest.approx([highest[0], 1.0], abs=0.01)
    inside = [rate for rate in np.linspace(0, 1, 201) if np.abs(x - rate).min() > 0.006]
    assert np.interp(inside, drawn_x, drawn_y) == pytest.approx(np.interp(inside, x, y), abs=0.01)


def test_the_gallery_shows_the_worst_errors_with_their_pictures(results: Path, page: Page) -> None:
    test = read_predictions(results / "drawn/good/seed_0/predictions.csv")
    threshold = float(page.row("best F1")[1])
    rows = list(zip(test["image"], test["label"], test["raw_score"], strict=True))
    expected = {
        "Highest": sorted(rows, key=lambda row: -row[2])[:6],
        "Worst false positives": sorted(
            (r for r in rows if r[1] == "normal" and r[2] > threshold), key=lambda r: -r[2]
        ),
        "Worst false negatives": sorted(
            (r for r in rows if r[1] == "abnormal" and r[2] < threshold), key=lambda r: r[2]
        ),
    }
    for title, listed in expected.items():
        heading = next(i for i, e in enumerate(page.elements) if e["tag"] == "h3" and e["text"].startswith(title))
        gallery = next(i for i in range(heading, len(page.elements)) if page.elements[i].get("class") == "gallery")
        assert [e["text"] for e in page.inside(gallery, "strong")] == [row[0] for row in listed[:6]]
        for picture, (image, *_) in zip(page.inside(gallery, "img"), listed[:6], strict=True):
            shown = Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2])))
            index = int(re.search(r"\d+", image)[0])
            assert np.abs(np.array(shown)[16, 48].astype(int) - colour(index)).max() < 8


def test_what_a_run_says_of_itself_is_there(page: Page) -> None:
    facts = [element["text"] for element in page.all("dd")]
    assert "54: 30 normal, 24 abnormal, of 27 patients" in facts
    assert "ab" * 32 in facts
    assert "1.5 min" in facts
    assert "torch 0.0" in facts
    assert any(p["text"].startswith("Lung masks of 26 images") and p["text"].endswith("none.") for p in page.all("p"))
    assert any("not a medical device" in p["text"] for p in page.all("p"))


def test_the_same_runs_give_the_same_file(results: Path, page: Page) -> None:
    make_report([results], results / "again.html", bootstrap=FEW)
    assert (results / "again.html").read_bytes() == (results / "report.html").read_bytes()
    (results / "again.html").unlink()


def test_with_many_runs_the_reference_is_named_and_can_be_chosen(tmp_path: Path) -> None:
    for index in range(6):
        draw_run(tmp_path / f"run{index}", 0.3 * index, index, pictures=False)
    page, _ = written(tmp_path)
    says = "Every run is compared with the reference run "
    (said,) = [p["text"] for p in page.all("p") if p["text"].startswith(says)]
    assert said == f"{says}run0 (the first by name, as there are over 5; --reference chooses another)."
    assert [page.row(f"run0 − run{index}")[1][:6] for index in range(1, 6)]
    asked, _ = written(tmp_path, reference="run4")
    (said,) = [p["text"] for p in asked.all("p") if p["text"].startswith(says)]
    assert said.startswith(f"{says}run4 (as asked for")
    compared = {cell["text"] for cell in asked.all("td") if " − " in cell["text"]}
    assert compared == {f"run4 − run{index}" for index in (0, 1, 2, 3, 5)}
    assert asked.row("run4 − run0")[1][1:6] == page.row("run0 − run4")[1][1:6]
    with pytest.raises(ValueError, match="no run 'run9' to compare with, the runs are: run0, run1"):
        written(tmp_path, reference="run9")


def test_each_run_is_compared_with_each_where_there_are_few_and_no_reference_is_named(page: Page) -> None:
    assert not [p for p in page.all("p") if "reference run" in p["text"]]


def test_the_drawn_curves_of_many_runs_are_the_best_ones(tmp_path: Path) -> None:
    for index in range(9):
        draw_run(tmp_path / f"run{index}", 0.4 * index, 7, pictures=False)
    draw_run(tmp_path / "run8" / "last", 4.0, 7, pictures=False)
    page, _ = written(tmp_path)
    legend = next(e["text"] for e in page.elements if e.get("class") == "legend")
    assert [part.strip() for part in legend.split("■")[1:]] == [f"run{index}" for index in range(8, 0, -1)]


def test_draws_without_a_label_are_counted_beside_the_interval(tmp_path: Path) -> None:
    # Two abnormal images, of one patient, among 11 patients: (10/11)^11 of the draws have none of them.
    draw_run(tmp_path / "few", 1.0, 1, pictures=False, normal=20, abnormal=2)
    page, _ = written(tmp_path)
    auroc, specificity = page.row("few")[3], page.row("few")[7]
    counted = int(re.fullmatch(r"\d\.\d{3}\d\.\d{3}–\d\.\d{3}(\d+) draws left out", auroc)[1])
    assert counted == pytest.approx(60 * (10 / 11) ** 11, abs=15)
    assert "left out" not in specificity, "normal images are in every draw"
    assert any(f", {counted} draws left out)" in e["text"] for e in page.all("figcaption"))


def test_runs_with_identical_scores_are_listed_each_but_count_once(tmp_path: Path) -> None:
    for index in range(3):
        draw_run(tmp_path / f"run{index}", 0.5 * index, index, pictures=False)
        draw_run(tmp_path / f"run{index}" / "last", 0.5 * index, index + 9 * (index == 0), pictures=False)
    page, _ = written(tmp_path, reference="run1/last")
    tables = {
        name: read_predictions(tmp_path / name / "predictions.csv") for name in ("run0", "run0/last", "run1", "run2")
    }
    tests = [
        delong_test(tables["run1"]["label"] == "abnormal", tables["run1"]["raw_score"], tables[other]["raw_score"])
        for other in ("run0", "run0/last", "run2")
    ]
    falling = sorted(test.p_value for test in tests)
    holms = [min(1.0, max((3 - rank) * falling[rank] for rank in range(last + 1))) for last in range(3)]
    expected = [holms[falling.index(test.p_value)] for test in tests]
    # Every run has a row of its own in the overview, which says of which other its scores are.
    assert page.row("run1/last" + "same scores as run1")[3:8] == page.row("run1")[3:8]
    assert page.row("run2/last" + "same scores as run2")[3:8] == page.row("run2")[3:8]
    assert page.row("run0/last")[3:8] != page.row("run0")[3:8]
    compared = [cell["text"] for cell in page.all("td") if " − " in cell["text"]]
    assert compared == [f"run1/last − {other}" for other in ("run0", "run0/last", "run2")]
    for name, p_value, test in zip(compared, expected, tests, strict=True):
        assert page.row(name)[3] == (f"{test.p_value:.4f}" if test.p_value >= 1e-4 else "< 0.0001")
        assert page.row(name)[4] == (f"{p_value:.4f}" if p_value >= 1e-4 else "< 0.0001")
    said = [element["text"] for element in page.all("li")]
    assert {"run1 has the scores of run1/last", "run2/last has the scores of run2"} <= set(said)


def test_runs_of_several_folders_have_the_shortest_names_that_tell_them_apart(tmp_path: Path) -> None:
    for name in ("a/results/deep/set/run", "b/results/deep/set/run", "b/results/deep/set/other"):
        draw_run(tmp_path / name, 1.0, len(name), pictures=False)
    arguments = [
        "--results",
        str(tmp_path / "a"),
        "--results",
        str(tmp_path / "b"),
        "--output",
        str(tmp_path / "r.html"),
    ]
    Report().run(
        Report.get_parser().parse_args([*arguments, "--draws", "20", "--reference", "b/results/deep/set/other"])
    )
    page = Page(tmp_path / "r.html")
    names = ["a/results/deep/set/run", "b/results/deep/set/other", "b/results/deep/set/run"]
    assert [h["text"] for h in page.all("h2") if h.get("id", "").startswith("run-")] == names
    make_report([tmp_path / "b"], tmp_path / "r.html", bootstrap=FEW, reference="set/run")
    page = Page(tmp_path / "r.html")
    assert [h["text"] for h in page.all("h2") if h.get("id", "").startswith("run-")] == ["other", "run"]
    assert [
        p["text"] for p in page.all("p") if p["text"].startswith("Every run is compared with the reference run run")
    ]


def test_a_line_may_break_after_each_slash_of_a_name(page: Page) -> None:
    for index, element in enumerate(page.elements):
        if element["tag"] == "a" and "/" in element["text"]:
            assert len(page.inside(index, "wbr")) == element["text"].count("/")
    assert not re.search(r"td:first-child\{[^}]*overflow-wrap:anywhere", page.all("style")[0]["text"])


def test_holm_is_that_of_r() -> None:
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04, float("nan")]) == pytest.approx([0.04, float("nan")], nan_ok=True)


def changed(folder: Path, **columns: object) -> None:
    """Rewrite a run's predictions with other columns."""
    table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False).assign(**columns)
    table.to_csv(folder / "predictions.csv", index=False)


def written(root: Path, **options: object) -> tuple[Page, dict[str, str]]:
    broken = make_report([root], root / "report.html", bootstrap=FEW, **options)
    return Page(root / "report.html"), broken


def warnings_of(page: Page) -> str:
    return "\n".join(e["text"] for e in page.elements if e.get("class") == "warning")


def test_runs_of_different_images_are_not_compared(tmp_path: Path) -> None:
    draw_run(tmp_path / "a", 1.0, 1)
    draw_run(tmp_path / "b", 1.0, 2, normal=31)
    page, broken = written(tmp_path)
    assert not broken
    assert "only in b, such as test/abnormal/film 054.png, test/normal/film 030.png" in warnings_of(page)
    assert not [cell for cell in page.all("th") if cell["text"] == "p (DeLong)"]


def test_a_broken_run_is_named_and_the_others_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    draw_run(tmp_path / "good", 1.0, 1)
    changed(draw_run(tmp_path / "bad", 1.0, 2), raw_score="")
    parser = Report.get_parser()
    arguments = ["--results", str(tmp_path), "--output", str(tmp_path / "r.html"), "--draws", "20"]
    with pytest.raises(SystemExit) as ended:
        Report().run(parser.parse_args(arguments))
    assert ended.value.code == 1
    assert "bad: " in capsys.readouterr().out
    page = Page(tmp_path / "r.html")
    assert "NaN or infinite" in warnings_of(page)
    assert page.row("good")[1:3] == ["30", "24"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"label": "abnormal"}, "All labelled images are abnormal"),
        ({"label": ""}, "54 of 54 images have no label"),
        ({"raw_score": "0.25"}, "All scores are equal (0.25)"),
        ({"patient_id": ""}, "54 images have no patient"),
        ({"patient_id": "p"}, "Few patients, 1 with abnormal images and 1 with normal images: the intervals are too"),
        ({"split_hash": [str(i % 2) for i in range(54)]}, "of several splits"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path: Path, columns: dict, says: str) -> None:
    changed(draw_run(tmp_path / "run", 1.0, 1), **columns)
    page, broken = written(tmp_path)
    assert not broken
    assert says in warnings_of(page)
    assert "nan" not in " ".join(e["text"] for e in page.all("td")).lower()
    assert "nan" not in " ".join(e.get("points", "") for e in page.elements)


def test_without_validation_there_is_no_threshold(tmp_path: Path) -> None:
    folder = draw_run(tmp_path / "run", 1.0, 1)
    (folder / "predictions_val.csv").unlink()
    page, _ = written(tmp_path)
    assert "No threshold could be chosen" in warnings_of(page)
    assert page.row("run")[5:8] == ["–", "–", "–"]
    assert any("the run's own decisions" in e["text"] for e in page.all("h3"))


def test_validation_images_that_are_test_images_choose_no_threshold(tmp_path: Path) -> None:
    folder = draw_run(tmp_path / "run", 1.0, 1)
    write_predictions(folder / "predictions_val.csv", read_predictions(folder / "predictions.csv"))
    page, _ = written(tmp_path)
    assert "54 of the validation images are test images too" in warnings_of(page)


def test_too_few_normal_validation_images_leave_one_rule_out(tmp_path: Path) -> None:
    draw_run(tmp_path / "run", 1.0, 1)
    page, _ = written(tmp_path, false_positive_rate=0.01)
    assert "needs scores of at least 99 normal images" in page.row("false-positive rate 0.01, normal images alone")[1]
    assert re.match(r"0\.\d{3}", page.row("run")[5])


def test_pictures_stay_below_the_limit(results: Path, tmp_path: Path) -> None:
    make_report([results], tmp_path / "r.html", bootstrap=FEW, max_mb=0.01)
    page = Page(tmp_path / "r.html")
    assert 0 < sum(len(e["src"]) for e in page.all("img")) <= 10_000
    assert any("pictures are left out to keep the file small" in p["text"] for p in page.all("p"))
    for name in ("good", "weak"):  # both runs get some
        assert any(f"{name}/seed_0" in str(page.elements[i]["text"]) for i in range(len(page.elements)))


def test_pictures_are_found_by_what_follows_the_data_set(tmp_path: Path) -> None:
    names = ["a/x.png", "b/x.png", "data/only.png", "scan.dcm.png", "deep/p/q.png"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    images = ["test/a/x.png", "/elsewhere/b/x.png", "only.png", "scan.dcm", "deep/p/q.png", "other/p/q.png", "c/x.png"]
    found, shared = match_pictures(tmp_path, unnamed(images))
    assert {image: path.relative_to(tmp_path / "images").as_posix() for image, path in found.items()} == {
        "test/a/x.png": "a/x.png",
        "/elsewhere/b/x.png": "b/x.png",
        "only.png": "data/only.png",
        "scan.dcm": "scan.dcm.png",
        "deep/p/q.png": "deep/p/q.png",
    }
    assert shared == 0
    _, shared = match_pictures(tmp_path, unnamed(["train/a/x.png", "test/a/x.png"]))
    assert shared == 2


def test_pictures_that_the_predictions_name_are_taken(tmp_path: Path) -> None:
    for name in ("a/x.png", "x~0123.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    table = pd.DataFrame({"image": ["a/x.png", "b/x.png", "c/x.png", "a/gone.png"]})
    table["picture"] = ["images/x~0123.png", "images/a/x.png", "", "images/gone.png"]
    found, shared = match_pictures(tmp_path, table)
    assert found == {"a/x.png": tmp_path / "images/x~0123.png", "b/x.png": tmp_path / "images/a/x.png"}
    assert shared == 0


def unnamed(images: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"image": images, "picture": ""})


def test_a_picture_that_is_none_is_left_out(tmp_path: Path) -> None:
    folder = draw_run(tmp_path / "run", 1.0, 1)
    for path in (folder / "images").rglob("*.png"):
        path.write_bytes(b"no picture")
    page, _ = written(tmp_path)
    assert not page.all("img")
    assert any(p["text"] == "no picture" for p in page.all("p"))


@pytest.mark.parametrize(
    ("results", "options", "says"),
    [
        ("nowhere", {}, "There is no folder"),
        ("", {}, "There is no predictions.csv"),
        ("run", {"sensitivity": 1.5}, "sensitivity must lie in"),
        ("run", {"shown": -1}, "no negative number"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, results: str, options: dict, says: str) -> None:
    if results == "run":
        draw_run(tmp_path / "run", 1.0, 1)
    with pytest.raises(ValueError, match=says):
        make_report([tmp_path / results], tmp_path / "r.html", **options)
    assert not (tmp_path / "r.html").exists()


def test_the_command_is_registered() -> None:
    assert SUBCOMMANDS["report"] is Report
    parsed = Report.get_parser().parse_args(["--results", "a", "b", "--gallery", "2"])
    assert [str(path) for path in parsed.results] == ["a", "b"]


def test_no_folder_of_the_machine_is_named(tmp_path: Path) -> None:
    (one, other) = (tmp_path / name / "results" for name in ("first", "second"))
    for folder in (one, other):
        draw_run(folder / "run", 2.0, 1)
        with (folder / "run" / "job.yaml").open("a") as file:
            file.write(f"# --data.root {tmp_path}/films\n")
        (folder / "run" / "predictions_val.csv").unlink()
        (folder / "broken").mkdir()
        (folder / "broken" / "predictions.csv").write_text("image\na\n")
    assert len(make_report([one, other], tmp_path / "report.html", bootstrap=FEW)) == 2
    text = Page(tmp_path / "report.html").elements[0]["text"]
    assert str(tmp_path) not in text
    assert "…/films" in text
    assert "…/predictions.csv lacks the columns" in text
    assert {"first/results/run", "second/results/run"} <= {
        head["text"] for head in Page(tmp_path / "report.html").all("h2")
    }


def test_a_new_metric_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both tables of the report, in that of cross-validation, and with its interval."""
    youden = ImageMetric(
        lambda at: (
            at.true_positive / (at.true_positive + at.false_negative)
            - at.false_positive / (at.false_positive + at.true_negative)
        ),
        ("normal", "abnormal"),
    )
    for table in (image_level.THRESHOLD_METRICS, image_level.IMAGE_METRICS):
        monkeypatch.setitem(table, "Youden", youden)
    folder = two_runs(tmp_path)
    page, _ = written(folder)
    assert (
        sum(head["text"] == "Youden" for head in page.all("th")) == 3
    )  # the overview, and the operating points of either run
    predictions = read_predictions(next(folder.rglob("predictions.csv")))
    truth = predictions["label"] == "abnormal"
    run = Run(predictions["raw_score"], truth, predictions["image"], float(predictions["raw_score"].median()))
    called = predictions["raw_score"] >= run.threshold
    expected = called[truth].mean() - called[~truth].mean()
    job = CrossValidationJob("own", "a", None, 0, {})
    values = image_metrics(run.scores, run.labels, run.threshold)
    costs = {"fit_seconds": 1.0, "image_ms": 1.0, "peak_gib": 1.0}
    _, table = make_tables([Evaluated(job, "last", run, values, costs, {})], {("own", "a"): 1}, draws=20)
    assert table["Youden"].item() == pytest.approx(expected)
    assert table["Youden_low"].item() <= expected <= table["Youden_high"].item()
    assert "Youden" in to_markdown(table, "best_f1", 20, 0.95)
