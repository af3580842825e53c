"""`anomalib cross-validate` cut off half-way or on a full disk, and started again; jobs are a few lines of Python."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from anomalib_cxr.files import read_json
from anomalib_cxr.leases import Lease
from anomalib_cxr.pipelines.cross_validation import job, runner
from anomalib_cxr.pipelines.cross_validation.pipeline import CrossValidate

# Predictions by the job's seed and model; what is at "trouble/<model>_<seed>" happens half-way.
FAKE = """
import csv, json, os, random, sys, time
folder = sys.argv[1]
model, seed = folder.split(os.sep)[-2:]
results = os.path.dirname(os.path.dirname(os.path.dirname(folder)))
with open(os.path.join(results, "starts.txt"), "a") as starts:
    starts.write(f"{model}/{seed}\\n")
draw = random.Random(f"{model} {seed}")
head = "image,patient_id,label,findings,raw_score,score,p_value,decision,split_hash".split(",")
trouble = os.path.join(os.environ["TROUBLE"], f"{model}_{seed}")
for name in ("predictions", "predictions_val"):
    with open(os.path.join(folder, f"{name}.csv"), "w", newline="") as file:
        write = csv.writer(file, lineterminator="\\n").writerow
        write(head)
        for number in range(24):
            sick = number % 2
            if number == 12 and name == "predictions" and os.path.exists(trouble):
                file.flush()
                what = open(trouble).read()
                if what == "hang":
                    os.mkdir(os.path.join(folder, "weights"))
                    open(os.path.join(folder, "fitted.json"), "w").write('{"chosen": "wei')
                    open(trouble + "_hangs", "w").close()
                    time.sleep(60)
                if what == "full disk":
                    raise OSError(28, "No space left on device", os.path.join(folder, "predictions.csv"))
                sys.exit(what)
            write([f"{name}/{number}.png", f"{name}-{number // 2}", ["normal", "abnormal"][sick], "",
                   draw.gauss(sick, 1), 0.5, "", "normal", "x"])
with open(os.path.join(folder, "done.json"), "w") as file:
    json.dump({"fit_seconds": 60.0}, file)
"""
JOBS = [f"{model}/seed_{seed}" for seed in (0, 1) for model in ("first", "second")]


@pytest.fixture(autouse=True)
def fake_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "trouble").mkdir()
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-S", str(tmp_path / "fake.py")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TROUBLE", str(tmp_path / "trouble"))


def cross_validate(results: Path, *arguments: str) -> None:
    model = {"class_path": "AnatPaste"}
    CrossValidate().run(
        CrossValidate.get_parser().parse_args(
            [
                f"--results={results}",
                f"--data={json.dumps({'own': {'class_path': 'PhantomCXR'}})}",
                f"--models={json.dumps({'first': model, 'second': model})}",
                "--seeds=[0, 1]",
                "--draws=50",
                *arguments,
            ]
        )
    )


def starts(results: Path) -> list[str]:
    return (results / "starts.txt").read_text().split()


def tables(results: Path) -> dict[str, str]:
    return {name: (results / name).read_text() for name in ("jobs.csv", "table.csv", "table.md")}


@pytest.fixture
def unbroken(tmp_path: Path) -> dict[str, str]:
    cross_validate(tmp_path / "unbroken")
    assert starts(tmp_path / "unbroken") == JOBS
    return tables(tmp_path / "unbroken")


def interrupted_when(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the user press Ctrl-C as soon as a file is there."""
    real = runner.as_completed

    def as_completed(futures: dict) -> Iterator:
        waiting = list(futures)
        for future in waiting:
            while not future.done():
                if there.exists():
                    raise KeyboardInterrupt
            yield from real([future])

    monkeypatch.setattr(runner, "as_completed", as_completed)


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_run_that_is_cut_off_goes_on_and_ends_with_the_table_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, str], parallel: int
) -> None:
    results = tmp_path / "broken"
    trouble = tmp_path / "trouble" / "second_seed_0"
    trouble.write_text("hang")
    with monkeypatch.context() as patch:
        interrupted_when(trouble.with_name("second_seed_0_hangs"), patch)
        with pytest.raises(KeyboardInterrupt):
            cross_validate(results, f"--jobs={parallel}")
    trouble.unlink()
    half = results / "own" / "second" / "seed_0"
    assert (half / "predictions.csv").read_text().count("\n") == 13, "half a file"
    assert not (results / "table.csv").exists()
    before = starts(results)
    done = {name for name in JOBS if (results / "own" / name / "done.json").exists()}
    assert "first/seed_0" in done or parallel == 2
    assert len(done) < len(JOBS)

    cross_validate(results, f"--jobs={parallel}")
    counted = Counter(starts(results))
    assert set(counted) == set(JOBS)
    assert all(counted[name] == 1 for name in done), "a finished job was run again"
    assert all(counted[name] <= 1 + before.count(name) for name in JOBS)
    assert tables(results) == unbroken
    cross_validate(results)
    assert Counter(starts(results)) == counted
    assert tables(results) == unbroken


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("done.json", b""),
        ("done.json", b'{"fit_sec'),
        ("done.json", b"[]"),
        ("job.yaml", b"\xff\xfe half a fi"),
        ("predictions.csv", b"image,patient_id\nx.png"),
    ],
)
def test_a_half_written_folder_is_done_again(
    tmp_path: Path, unbroken: dict[str, str], name: str, content: bytes
) -> None:
    results = tmp_path / "unbroken"
    folder = results / "own" / "first" / "seed_1"
    if name != "done.json":
        (folder / "done.json").unlink()
    (folder / name).write_bytes(content)
    cross_validate(results)
    assert Counter(starts(results)) == Counter([*JOBS, "first/seed_1"])
    assert tables(results) == unbroken


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("full disk", "OSError: [Errno 28] No space left on device"),
        ("the licence has run out", "exit status 1: the licence has run out"),
    ],
)
def test_a_job_that_dies_is_reported_and_the_others_are_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture, trouble: str, says: str
) -> None:
    (tmp_path / "trouble" / "first_seed_0").write_text(trouble)
    results = tmp_path / "results"
    with pytest.raises(SystemExit) as ended:
        cross_validate(results)
    assert ended.value.code == 1
    assert starts(results) == JOBS, "the others go on"
    printed = capsys.readouterr().out
    assert "1 of 4 jobs failed:\n- own/first/seed_0: " in printed
    assert says in printed
    assert says in (results / "table.md").read_text()
    assert pd.read_csv(results / "table.csv")[["model", "jobs", "planned"]].to_numpy().tolist() == [
        ["first", 1, 2], ["second", 2, 2]
    ]  # fmt: skip


def test_a_job_whose_folder_cannot_be_made_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    results = tmp_path / "results"
    (results / "own" / "first").mkdir(parents=True)
    (results / "own" / "first" / "seed_0").write_text("a file where a folder should be")
    with pytest.raises(SystemExit) as ended:
        cross_validate(results)
    assert ended.value.code == 1
    assert starts(results) == JOBS[1:]
    assert "- own/first/seed_0: FileExistsError: " in capsys.readouterr().out


def test_results_that_cannot_be_written_are_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^anomalib cross-validate: .*file"):
        cross_validate(tmp_path / "file" / "results")


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (PermissionError(13, "Permission denied", "x"), "PermissionError: [Errno 13] Permission denied: 'x'"),
        (SystemExit(0), "SystemExit: the job was ended before it was done"),
        (SystemExit(None), "SystemExit: the job was ended before it was done"),
        (SystemExit("no licence"), "no licence"),
        (SystemExit(2), 2),
    ],
)
def test_no_job_that_is_not_done_ends_with_status_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: object
) -> None:
    def run_job(folder: Path, check_lease: object) -> None:
        raise raised

    for name, value in (("run_job", run_job), ("_end_with_parent", bool), ("configure_logger", bool)):
        monkeypatch.setattr(job, name, value)
    monkeypatch.setattr(sys, "argv", ["job", os.fspath(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        job.main()
    assert ended.value.code == code


@pytest.mark.parametrize("too_late", [True, False])
def test_a_job_that_has_lost_its_lease_leaves_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, too_late: bool
) -> None:
    """It was asleep while its lease went to another; it wakes up just before it would say that it is done."""
    lease = Lease.take(tmp_path)
    assert lease is not None

    def run_job(folder: Path, check_lease: Callable[[], object]) -> None:
        if too_late:
            lease.release("killed")
            assert Lease.take(tmp_path) is not None
        check_lease()
        (folder / "done.json").touch()

    def leave(status: int) -> None:
        raise SystemExit(status)

    beating: list[object] = []
    monkeypatch.setattr(Lease, "keep_beating", lambda self, lost: beating.append(lost))
    for name, value in (("run_job", run_job), ("_end_with_parent", bool), ("configure_logger", bool)):
        monkeypatch.setattr(job, name, value)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["job", os.fspath(tmp_path), os.fspath(lease.path)])
    if not too_late:
        job.main()
        assert beating == [job._end_without_lease]
        assert (tmp_path / "done.json").exists()
        return
    with pytest.raises(SystemExit) as ended:
        job.main()
    assert ended.value.code == 75
    assert not (tmp_path / "done.json").exists()
    assert "has gone to process" in capsys.readouterr().out


def test_a_torn_note_counts_for_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "fitted.json"
    assert read_json(path) is None
    path.write_text('{"chosen": "weights/light')
    assert read_json(path) is None
    assert f"{path} cannot be read and counts for nothing" in caplog.text
    path.write_text('{"seconds": NaN}')
    assert set(read_json(path) or {}) == {"seconds"}
