"""Running jobs in processes: skipped, failing, resumed. The job itself is a few lines of Python here."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from anomalib_cxr.pipelines.cross_validation import runner
from anomalib_cxr.pipelines.cross_validation.plan import CrossValidationJob, PlanError
from anomalib_cxr.pipelines.cross_validation.runner import is_done, run_jobs

FAKE = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
text = (folder / "job.yaml").read_text()
with open(folder.parent / "starts.txt", "a") as starts:
    starts.write(f"{folder.name} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ.get('OMP_NUM_THREADS')}\\n")
time.sleep(0.3 if "slow" in text else 0)
print("working")
if "broken" in text:
    sys.exit("ValueError: no such net")
if "silent" in text:
    sys.exit(0)
(folder / "done.json").write_text(json.dumps({"fit_seconds": 1.0}))
"""


@pytest.fixture(autouse=True)
def fake_jobs(monkeypatch, tmp_path) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-S", str(script)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def job(seed: int, kind: str = "good") -> CrossValidationJob:
    return CrossValidationJob("own", "model", None, seed, {"model": kind, "seed_everything": seed})


def starts(results: Path) -> list[list[str]]:
    path = results / "own" / "model" / "starts.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_failing_job_is_reported_and_the_others_go_on(tmp_path) -> None:
    lines: list[str] = []
    jobs = [job(0), job(1, "broken"), job(2, "silent"), job(3)]
    failed = run_jobs(jobs, tmp_path, report=lines.append)
    assert set(failed) == {"own/model/seed_1", "own/model/seed_2"}
    assert failed["own/model/seed_1"].startswith("exit status 1: ValueError: no such net (see ")
    assert "exit status 0: working" in failed["own/model/seed_2"]
    assert [is_done(one, tmp_path) for one in jobs] == [True, False, False, True]
    assert len(lines) == 4
    assert "[2/4] own/model/seed_1: FAILED" in lines[1]


def test_done_jobs_are_skipped_and_failed_ones_tried_again(tmp_path) -> None:
    jobs = [job(0), job(1, "broken"), job(2)]
    run_jobs(jobs[:2], tmp_path, report=lambda _: None)
    lines: list[str] = []
    assert set(run_jobs(jobs, tmp_path, report=lines.append)) == {"own/model/seed_1"}
    assert lines[0] == "1 of 3 jobs are done already."
    assert [line[0] for line in starts(tmp_path)] == ["seed_0", "seed_1", "seed_1", "seed_2"]


def test_a_job_done_with_another_configuration_is_refused_before_anything_runs(tmp_path) -> None:
    run_jobs([job(0)], tmp_path, report=lambda _: None)
    with pytest.raises(PlanError, match="seed_0 was done with another configuration"):
        run_jobs([job(5), job(0, "slow")], tmp_path)
    assert len(starts(tmp_path)) == 1


def test_leftovers_of_another_configuration_are_cleared_and_of_the_same_kept(tmp_path) -> None:
    folder = tmp_path / "own" / "model" / "seed_0"
    run_jobs([job(0, "silent")], tmp_path, report=lambda _: None)
    (folder / "weights").mkdir()
    (folder / "predictions.csv").write_text("half")
    run_jobs([job(0, "silent")], tmp_path, report=lambda _: None)
    assert (folder / "weights").is_dir()
    run_jobs([job(0)], tmp_path, report=lambda _: None)
    assert not (folder / "weights").exists()
    assert not (folder / "predictions.csv").exists()
    assert json.loads((folder / "done.json").read_text()) == {"fit_seconds": 1.0}


def test_several_processes_work_at_a_time(tmp_path, monkeypatch) -> None:
    running, most, lock = [0], [0], threading.Lock()
    real = runner._run_job

    def counted(*arguments):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        try:
            return real(*arguments)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(runner, "_run_job", counted)
    assert not run_jobs([job(seed, "slow") for seed in range(6)], tmp_path, 3, lambda _: None)
    assert most[0] == 3
    assert len(starts(tmp_path)) == 6


def test_each_process_has_its_gpu_and_its_share_of_the_cores(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    run_jobs([job(seed, "slow") for seed in range(4)], tmp_path, 2, lambda _: None)
    assert {tuple(line[1:]) for line in starts(tmp_path)} == {("4", "4"), ("6", "4")}


def test_an_interrupt_ends_the_processes(tmp_path, monkeypatch) -> None:
    script = Path(runner.COMMAND[-1])
    script.write_text("import time, sys\nopen(sys.argv[1] + '/began', 'w')\ntime.sleep(60)")

    def interrupt(_futures):
        while not (tmp_path / "own/model/seed_0/began").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "as_completed", interrupt)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job(0), job(1)], tmp_path)
    assert time.monotonic() - begun < 30
    assert not (tmp_path / "own/model/seed_1").exists()


def test_two_commands_in_one_folder_run_each_job_once_and_both_know_how_it_ended(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0.02)
    jobs = [job(seed, "broken" if seed == 1 else "slow" if seed == 2 else "good") for seed in range(6)]
    failed: list[dict[str, str]] = []
    lines: list[str] = []
    begun = threading.Barrier(3)
    real = runner.lease_numbers

    def together(*arguments):
        numbers = real(*arguments)
        begun.wait(60)
        return numbers

    monkeypatch.setattr(runner, "lease_numbers", together)
    commands = [
        threading.Thread(target=lambda: failed.append(run_jobs(jobs, tmp_path, 2, lines.append))) for _ in range(3)
    ]
    for command in commands:
        command.start()
    for command in commands:
        command.join()
    assert sorted(line[0] for line in starts(tmp_path)) == [f"seed_{seed}" for seed in range(6)]
    assert len(failed) == 3
    assert {tuple(one) for one in failed} == {("own/model/seed_1",)}
    assert {one["own/model/seed_1"].split(" (see")[0] for one in failed} == {"exit status 1: ValueError: no such net"}
    assert sum("works on it." in line for line in lines) >= 2, "one waits for what another one does"
    assert sum(line.startswith("[6/6]") for line in lines) == 3


def test_a_job_whose_lease_is_taken_over_is_waited_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0.02)
    Path(runner.COMMAND[-1]).write_text(
        "import os, sys, pathlib\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "if not (folder / 'once').exists():\n"
        "    (folder / 'once').touch()\n"
        "    sys.exit(75)\n" + FAKE
    )
    lines: list[str] = []
    assert run_jobs([job(0)], tmp_path, report=lines.append) == {}
    assert len(starts(tmp_path)) == 1
    assert "FAILED" not in " ".join(lines)
