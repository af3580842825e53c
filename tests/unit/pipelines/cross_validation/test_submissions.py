"""Jobs on a cluster: killed ones are tried again, failed ones are not; the command may leave, and others may come."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from anomalib_cxr.leases import Lease, last_lease
from anomalib_cxr.pipelines.cross_validation import pipeline, runner, submissions
from anomalib_cxr.pipelines.cross_validation.pipeline import CrossValidate
from anomalib_cxr.pipelines.cross_validation.plan import CrossValidationJob, PlanError
from anomalib_cxr.pipelines.cross_validation.slurm import SlurmCluster, SlurmError, SlurmOptions
from anomalib_cxr.pipelines.cross_validation.submissions import Submissions


class Queue:
    """A cluster in a few lines: each time that it is asked, what waits comes to the end that is written for it."""

    user = "somebody"

    def __init__(self, **ends: list[str]) -> None:
        self.ends = ends
        self.submitted: list[str] = []
        self.waiting: dict[str, tuple[Path, str]] = {}
        self.known: dict[str, str] = {}
        self.meanwhile: Callable[[], object] = bool

    def words(self, job: str) -> Path:
        return Path("/words") / job

    def submit(self, command: Sequence[str], folder: Path, digest: str) -> str:
        assert command == runner.COMMAND
        name = str(len(self.submitted) + 1)
        self.submitted.append(folder.name)
        self.waiting[name] = (folder, digest)
        self.known[name] = "PENDING"
        return name

    def states(self, users: Sequence[str]) -> dict[str, str] | None:
        assert set(users) == {"somebody"}
        answer = dict(self.known)
        for name, (folder, digest) in list(self.waiting.items()):
            end = self.ends[folder.name][0]
            if end == "waits":
                continue
            lease = None if end == "never begins" else Lease.take(folder, job=name, digest=digest)
            if lease is None and end != "never begins":
                continue  # the command is about to let go of it
            del self.waiting[name]
            self.ends[folder.name].pop(0)
            self.known[name] = "COMPLETED"
            if lease is None or lease._lock is None:
                del self.known[name]
            elif end == "killed":
                lease._lock.release()  # as the kernel does for the dead
                self.known[name] = "NODE_FAIL"
            elif end == "timeout":
                lease.release("killed", "ended by SIGUSR2")
                self.known[name] = "TIMEOUT"
            elif end == "fails":
                lease.release("failed", "ValueError: no such net")
            else:
                (folder / "done.json").write_text('{"fit_seconds": 1.0}')
                lease.release("done")
        self.meanwhile()
        return answer

    is_alive = staticmethod(SlurmCluster.is_alive)


def job(seed: int, kind: str = "good") -> CrossValidationJob:
    return CrossValidationJob("own", "model", None, seed, {"model": kind, "seed_everything": seed})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0.001)


def command(
    results: Path, queue: Queue, jobs: Sequence[CrossValidationJob], retries: int = 2, leave: bool = False
) -> tuple[Submissions, list[str]]:
    lines: list[str] = []
    one = Submissions(jobs, results, queue, retries, lines.append)
    one.collect(leave)
    return one, lines


def test_a_killed_job_is_tried_again_and_a_failed_one_is_not(tmp_path: Path) -> None:
    queue = Queue(seed_0=["killed", "timeout", "done"], seed_1=["fails"], seed_2=["never begins", "done"])
    done, lines = command(tmp_path, queue, [job(seed) for seed in range(3)])
    assert done.failed == {"own/model/seed_1": "ValueError: no such net"}
    assert Counter(queue.submitted) == {"seed_0": 3, "seed_1": 1, "seed_2": 2}
    assert "own/model/seed_0: 1 was killed: NODE_FAIL, without time for a word." in lines
    assert any("seed_0: 4 was killed: ended by SIGUSR2." in line for line in lines)
    assert "own/model/seed_2: 3 was killed: no longer in the queue, before it began." in lines
    assert any(line.startswith("own/model/seed_0: submitted as") and "(try 3 of 3)" in line for line in lines)
    assert any(line.endswith("own/model/seed_1: FAILED, ValueError: no such net") for line in lines)


def test_tries_are_counted_and_begin_anew_with_a_new_command(tmp_path: Path) -> None:
    queue = Queue(seed_0=["killed"] * 5)
    done, _ = command(tmp_path, queue, [job(0)], retries=1)
    assert done.failed == {
        "own/model/seed_0": "killed 2 times, the last time: NODE_FAIL, without time for a word (see /words/2)"
    }
    left, _ = command(tmp_path, queue, [job(0)], retries=1, leave=True)
    assert len(queue.submitted) == 3
    assert left.left() == (
        "1 of 1 jobs go on: start the same command again to collect them; `scancel 3` ends those in the queue."
    )
    done, _ = command(tmp_path, queue, [job(0)], retries=1)
    assert "killed 2 times" in done.failed["own/model/seed_0"]
    assert len(queue.submitted) == 4
    done, _ = command(tmp_path, queue, [job(0)], retries=0)
    assert "killed once: NODE_FAIL" in done.failed["own/model/seed_0"]
    assert len(queue.submitted) == 5


def test_what_ended_while_the_command_was_away_is_collected(tmp_path: Path) -> None:
    queue = Queue(seed_0=["done"], seed_1=["fails", "done"], seed_2=["killed", "done"], seed_3=["waits"])
    jobs = [job(seed) for seed in range(4)]
    command(tmp_path, queue, jobs, leave=True)
    assert queue.submitted == ["seed_0", "seed_1", "seed_2", "seed_3"]
    queue.states(["somebody"])
    back, lines = command(tmp_path, queue, jobs[:3])
    assert back.failed == {"own/model/seed_1": "ValueError: no such net"}
    assert lines[0] == "1 of 3 jobs are done already."
    assert queue.submitted[4:] == ["seed_2"]
    _, lines = command(tmp_path, queue, jobs, leave=True)
    assert "own/model/seed_3: 4 is in the queue: PENDING." in lines
    assert queue.submitted[5:] == ["seed_1"], "a new command tries again what failed"


def test_two_commands_submit_each_job_once_and_both_collect_it(tmp_path: Path) -> None:
    queue = Queue(seed_0=["done"], seed_1=["fails"], seed_2=["timeout", "done"])
    jobs = [job(seed) for seed in range(3)]
    second, asleep = Submissions(jobs, tmp_path, queue, 2, bool), [False]

    def comes_between() -> None:
        if not asleep[0]:
            asleep[0] = True
            second.collect(leave=True)
            asleep[0] = False

    queue.meanwhile = comes_between
    first, _ = command(tmp_path, queue, jobs)
    second.collect()
    assert Counter(queue.submitted) == {"seed_0": 1, "seed_1": 1, "seed_2": 2}
    assert first.failed == second.failed == {"own/model/seed_1": "ValueError: no such net"}


def test_a_queue_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(seed_0=["done"])
    answers: list[dict | None] = [None, None, {}, None, {}, None]
    monkeypatch.setattr(queue, "states", lambda users: answers.pop(0) if answers else Queue.states(queue, users))
    done, lines = command(tmp_path, queue, [job(0)])
    assert not done.failed
    assert queue.submitted == ["seed_0"]
    assert lines[:2] == ["The queue does not answer: asked again.", "own/model/seed_0: submitted as 1."]


def test_a_job_that_waits_with_another_configuration_is_refused(tmp_path: Path) -> None:
    queue = Queue(seed_0=["waits", "done"])
    command(tmp_path, queue, [job(0)], leave=True)
    with pytest.raises(PlanError, match="in the queue as 1 with another configuration"):
        command(tmp_path, queue, [job(0, "other")])
    del queue.known["1"], queue.waiting["1"]
    queue.ends["seed_0"].pop(0)
    done, _ = command(tmp_path, queue, [job(0, "other")])
    assert not done.failed
    assert queue.submitted == ["seed_0"] * 2


def test_what_another_command_works_on_here_is_not_submitted(tmp_path: Path) -> None:
    queue = Queue(seed_0=["done"])
    lease = Lease.take(tmp_path / "own/model/seed_0")
    assert lease is not None
    waits, lines = command(tmp_path, queue, [job(0)], leave=True)
    assert not queue.submitted
    assert f"process {os.getpid()} on " in lines[0]
    assert waits.left() == "1 of 1 jobs go on: start the same command again to collect them."
    lease.release("killed")
    command(tmp_path, queue, [job(0)])
    assert queue.submitted == ["seed_0"]


# Done, unless it is to break, or to run out of time at the first try: its parent gets submitit's signal then.
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
text = (folder / "job.yaml").read_text()
with open(folder / "starts.txt", "a") as starts:
    starts.write(os.environ.get("SLURM_NTASKS", "one process") + "\\n")
first = len((folder / "starts.txt").read_text().splitlines()) == 1
if "timeout" in text and first:
    os.kill(os.getppid(), signal.SIGUSR2)
    time.sleep(60)
if "broken" in text:
    sys.exit("ValueError: no such net")
(folder / "done.json").write_text(json.dumps({"fit_seconds": 1.0}))
"""


class LocalCluster(SlurmCluster):
    """submitit's own processes on this machine, which outlive the command as SLURM's jobs do."""

    kind = "local"

    def states(self, users: Sequence[str]) -> dict[str, str]:
        found = {}
        for pid in (path.name for path in (self.results / ".slurm").iterdir() if path.name.isdigit()):
            with suppress(ChildProcessError):
                os.waitpid(int(pid), os.WNOHANG)  # a child of this very process would stay a zombie
            if Path(f"/proc/{pid}").exists():
                found[pid] = "RUNNING"
        return found


def test_jobs_of_submitit_that_are_left_killed_and_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-S", str(script)))
    monkeypatch.setattr(submissions, "_LOOK_SECONDS", 0.1)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    results = tmp_path / "results"
    jobs = [job(0, "timeout"), job(1, "broken")]
    lines: list[str] = []
    first = Submissions(jobs, results, LocalCluster(SlurmOptions(), results), 1, lines.append)
    first.collect(leave=True)
    assert len(lines) == 2
    assert "2 of 2 jobs go on" in first.left()
    again = Submissions(jobs, results, LocalCluster(SlurmOptions(), results), 1, lines.append)
    again.collect()
    assert set(again.failed) == {"own/model/seed_1"}
    assert again.failed["own/model/seed_1"].startswith("exit status 1: ValueError: no such net (see ")
    starts = [(results / one.name / "starts.txt").read_text().splitlines() for one in jobs]
    assert [len(one) for one in starts] == [2, 1]
    assert {line for one in starts for line in one} == {"one process"}, "Lightning would take it for one of many"
    assert any("seed_0" in line and "ended by SIGUSR2" in line for line in lines)


def test_the_command_leaves_at_ctrl_c_and_collects_when_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    queue = Queue(seed_0=["waits", "fails"])
    monkeypatch.setattr(pipeline, "SlurmCluster", lambda options, results: queue)
    model = json.dumps({"first": {"class_path": "Padim"}})
    arguments = [f"--results={tmp_path}", '--data={"own": {"class_path": "PhantomCXR"}}', f"--models={model}"]
    arguments += ["--launcher=slurm", "--slurm.gpus=1"]

    def ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", ctrl_c)
        with pytest.raises(SystemExit) as ended:
            CrossValidate().run(CrossValidate.get_parser().parse_args(arguments))
    assert ended.value.code == 130
    said = capsys.readouterr().out
    assert "1 of 1 jobs go on: start the same command again to collect them; `scancel 1` ends" in said
    assert list(queue.waiting) == ["1"]
    CrossValidate().run(CrossValidate.get_parser().parse_args([*arguments, "--leave=true"]))
    assert "1 of 1 jobs go on" in capsys.readouterr().out
    queue.ends["seed_0"].pop(0)
    with pytest.raises(SystemExit) as ended:
        CrossValidate().run(CrossValidate.get_parser().parse_args(arguments))
    assert ended.value.code == 1
    assert "1 of 1 jobs failed:\n- own/first/seed_0: ValueError: no such net" in capsys.readouterr().out
    assert queue.submitted == ["seed_0"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--retries=-1"], "retries must be at least 0, got -1"),
        (["--leave=true"], "leave is for launcher slurm"),
        (["--launcher=slurm", "--slurm.time=0"], "slurm.time must be at least 1, got 0"),
        (["--launcher=slurm", '--slurm={"cpus": 0, "partition": "gpu"}'], "slurm.cpus must be at least 1, got 0"),
        (["--launcher=slurm", "--slurm.memory=-2"], "slurm.memory must be a positive number of GiB, got -2"),
        (["--launcher=slurm"], 'needs submitit: pip install "anomalib-cxr'),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    model = json.dumps({"first": {"class_path": "Padim"}})
    arguments = [
        f"--results={tmp_path}",
        '--data={"own": {"class_path": "PhantomCXR"}}',
        f"--models={model}",
        *arguments,
    ]
    with pytest.raises(SystemExit, match=f"^anomalib cross-validate: .*{said}"):
        CrossValidate().run(CrossValidate.get_parser().parse_args(arguments))


def test_without_slurm_and_with_a_partition_that_it_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="needs sbatch, srun and squeue"):
        SlurmCluster(SlurmOptions(), tmp_path / "results")
    for name, text in {
        "sbatch": "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1",
        "srun": "",
        "squeue": "echo '3 PENDING'; echo '4_[1-3] RUNNING'",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    cluster = SlurmCluster(SlurmOptions(partition="nope", extra={"account": "x"}), tmp_path / "results")
    with pytest.raises(SlurmError, match=r"^SLURM refused .*seed_0: invalid partition specified: nope$"):
        cluster.submit(runner.COMMAND, tmp_path / "seed_0", "abc")
    (script,) = (tmp_path / "results" / ".slurm").glob(".submission_file_*.sh")
    asked = script.read_text()
    for line in ("--partition=nope", "--account=x", "--time=240", "--mem=16GB", "--cpus-per-task=4"):
        assert f"#SBATCH {line}\n" in asked
    assert cluster.states(["a", "b"]) == {"3": "PENDING", "4_[1-3]": "RUNNING"}
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: no contact' >&2; exit 1\n")
    assert cluster.states(["a"]) is None


def test_states_of_slurm() -> None:
    alive = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED")
    ended = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
    assert all(map(SlurmCluster.is_alive, alive))
    assert not any(map(SlurmCluster.is_alive, (*ended, None)))


def test_the_last_lease_of_a_submission_is_free(tmp_path: Path) -> None:
    """The machine of the cluster must not wait for the command that has submitted the job."""
    command(tmp_path, Queue(seed_0=["waits"]), [job(0)], leave=True)
    last = last_lease(tmp_path / "own/model/seed_0")
    assert last is not None
    assert last.ended == "left"
