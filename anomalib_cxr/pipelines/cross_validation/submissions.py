"""Gives the jobs of a cross-validation to a cluster, and collects them: now, or when the command is started again.

What a job is called in the queue and how often it was sent there lies beside its results. So any command that works on
the folder collects it, and none submits it twice.
"""

import json
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from anomalib_cxr.files import read_json, write_text
from anomalib_cxr.leases import Entry, Lease, is_free, last_lease, leases
from anomalib_cxr.pipelines.cross_validation import runner
from anomalib_cxr.pipelines.cross_validation.plan import CrossValidationJob, PlanError
from anomalib_cxr.pipelines.cross_validation.runner import failure_since, is_done, lease_numbers, prepare_folder
from anomalib_cxr.run_folder import SUBMISSION

_LOOK_SECONDS = 10.0


class Cluster(Protocol):
    """Where jobs run; see :class:`~anomalib_cxr.pipelines.cross_validation.slurm.SlurmCluster`."""

    @property
    def user(self) -> str:
        """Whose jobs they are."""

    def words(self, job: str) -> Path:
        """Where the cluster says what went wrong."""

    def submit(self, command: Sequence[str], folder: Path, digest: str) -> str:
        """Submit one job; returns its name in the queue."""

    def states(self, users: Collection[str]) -> dict[str, str] | None:
        """State of the users' jobs by their names; None if the queue did not answer."""

    def is_alive(self, state: str | None) -> bool:
        """Whether a job of this state waits or runs."""


@dataclass
class _Note:
    """What lies beside a job's results of its submissions.

    Attributes:
        jobs: Names in the queue, one for each try.
        user: Whose jobs.
        digest: Of the configuration that they were submitted with.
        over: Why no other try was made; None while the last one is waited for.
    """

    jobs: list[str] = field(default_factory=list)
    user: str = ""
    digest: str = ""
    over: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "_Note":
        try:
            return cls(**read_json(folder / SUBMISSION) or {})
        except TypeError:  # of another version
            return cls()

    def write(self, folder: Path) -> None:
        write_text(folder / SUBMISSION, json.dumps(asdict(self)) + "\n")


class Submissions:
    """One command's jobs on a cluster.

    Args:
        jobs: The jobs.
        results: Folder of the results.
        cluster: Where they run.
        retries: How often a job that was killed from outside, pre-empted or ran out of time is submitted again. One
            that failed by itself is not.
        report: Takes one line of progress after another.

    Attributes:
        failed: Reason for each job that failed, by its name.

    Raises:
        PlanError: If a job was completed, or is in the queue, with another configuration; nothing is submitted then.
    """

    def __init__(
        self,
        jobs: Sequence[CrossValidationJob],
        results: Path,
        cluster: Cluster,
        retries: int,
        report: Callable[[str], None] = print,
    ) -> None:
        self.results, self.cluster, self.retries, self.report = results, cluster, retries, report
        self.failed: dict[str, str] = {}
        self._waiting = {job.name: job for job in jobs if not is_done(job, results)}
        self._number = len(jobs)
        self._before = lease_numbers(list(self._waiting.values()), results)
        notes = {name: _Note.read(results / name) for name in self._waiting}
        # What an earlier command has given up is tried anew, what another gives up from now on is not.
        self._given_up = {name for name, note in notes.items() if note.over is not None}
        self._told: dict[str, str] = {}
        self._refuse_other_configurations(notes)
        if len(self._waiting) < len(jobs):
            report(f"{len(jobs) - len(self._waiting)} of {len(jobs)} jobs are done already.")

    def collect(self, leave: bool = False) -> None:
        """Submit what is to do and wait until all is done or has failed.

        Args:
            leave: Look at each job once and do not wait.

        Raises:
            SlurmError: If the cluster refuses a job.
        """
        while self._waiting:
            states = self.cluster.states({self.cluster.user, *(note.user for note in self._notes() if note.user)})
            if states is None:
                self._tell("", "The queue does not answer: asked again.")
            else:
                for job in list(self._waiting.values()):
                    self._advance(job, states)
            if leave:
                break
            if self._waiting:
                time.sleep(_LOOK_SECONDS)

    def left(self) -> str:
        """What goes on without this command, and how to collect it; nothing if all has ended."""
        if not self._waiting:
            return ""
        queued = [note.jobs[-1] for note in self._notes() if note.jobs and note.over is None]
        line = f"{len(self._waiting)} of {self._number} jobs go on: start the same command again to collect them"
        return f"{line}; `scancel {' '.join(queued)}` ends those in the queue." if queued else f"{line}."

    def _notes(self) -> Iterator[_Note]:
        return (_Note.read(self.results / name) for name in self._waiting)

    def _refuse_other_configurations(self, notes: dict[str, _Note]) -> None:
        others = {
            name: note.jobs[-1]
            for name, note in notes.items()
            if note.jobs and note.over is None and note.digest != self._waiting[name].digest
        }
        states = self.cluster.states({notes[name].user for name in others}) if others else {}
        for name, queued in others.items():
            if states is None or self.cluster.is_alive(states.get(queued)):
                msg = (
                    f"{self.results / name} is in the queue as {queued} with another configuration: wait for it, end "
                    f"it with `scancel {queued}`, or give another results folder."
                )
                raise PlanError(msg)

    def _advance(self, job: CrossValidationJob, states: dict[str, str]) -> None:
        """Look at one job, and submit it where that is due."""
        folder = self.results / job.name
        if is_done(job, self.results):
            self._end(job, None)
            return
        note, last = _Note.read(folder), last_lease(folder)
        if self._is_queued(job, note, states):
            self._tell(job.name, f"{note.jobs[-1]} is in the queue: {states[note.jobs[-1]]}.")
            return
        if not is_free(last):
            self._tell(job.name, f"{last.owner if last else 'another process'} works on it.")
            return
        try:
            self._submit_or_end(job, note)
        except OSError as error:  # its folder cannot be made or written
            self._end(job, f"{type(error).__name__}: {error}")

    def _is_queued(self, job: CrossValidationJob, note: _Note, states: dict[str, str]) -> bool:
        waited_for = note.digest == job.digest and note.jobs and note.over is None
        return bool(waited_for) and self.cluster.is_alive(states.get(note.jobs[-1]))

    def _submit_or_end(self, job: CrossValidationJob, note: _Note) -> None:
        """Judge how the last try ended, and try again or end, as the one process that does."""
        folder = self.results / job.name
        with _uninterrupted():
            lease = Lease.take(folder, digest=job.digest)
            if lease is None:
                return
            try:
                # Another command may have submitted it after the queue had been asked.
                states = self.cluster.states({note.user}) if note.jobs else {}
                if states is None or _Note.read(folder) != note or self._is_queued(job, note, states):
                    return
                if is_done(job, self.results):
                    self._end(job, None)
                    return
                verdict = self._verdict(job, note, states)
                if verdict.over is not None:
                    verdict.write(folder)
                    self._end(job, verdict.over)
                else:
                    prepare_folder(job, folder)
                    queued = self.cluster.submit(runner.COMMAND, folder, job.digest)
                    verdict.jobs.append(queued)
                    verdict.write(folder)
                    self._given_up.discard(job.name)
                    tries = f" (try {len(verdict.jobs)} of {self.retries + 1})" if len(verdict.jobs) > 1 else ""
                    self._tell(job.name, f"submitted as {queued}{tries}.")
            finally:
                lease.release("left")

    def _verdict(self, job: CrossValidationJob, note: _Note, states: dict[str, str]) -> _Note:
        """What the note is to be: of a job that is over, or of one to be submitted (again)."""
        fresh = _Note([], self.cluster.user, job.digest)
        failure = failure_since(job, self.results, self._before[job.name])
        if failure is not None:
            return _Note(note.jobs, note.user, job.digest, failure)
        if note.digest != job.digest or not note.jobs or job.name in self._given_up:
            return fresh
        if note.over is not None:  # by another command, meanwhile
            return note
        queued = note.jobs[-1]
        lease = next((one for one in leases(self.results / job.name) if one.content.get("job") == queued), None)
        if lease is not None and lease.ended == "failed":
            return _Note(note.jobs, note.user, note.digest, str(lease.content.get("reason")))
        how = _how_it_was_killed(lease, states.get(queued))
        self.report(f"{job.name}: {queued} was killed: {how}.")
        if len(note.jobs) > self.retries:
            times = "once" if len(note.jobs) == 1 else f"{len(note.jobs)} times, the last time"
            over = f"killed {times}: {how} (see {self.cluster.words(queued)})"
            return _Note(note.jobs, note.user, note.digest, over)
        return _Note(list(note.jobs), self.cluster.user, job.digest)

    def _end(self, job: CrossValidationJob, reason: str | None) -> None:
        del self._waiting[job.name]
        if reason is not None:
            self.failed[job.name] = reason
        shown = "done" if reason is None else f"FAILED, {reason}"
        self.report(f"[{self._number - len(self._waiting)}/{self._number}] {job.name}: {shown}")

    def _tell(self, name: str, line: str) -> None:
        """Report what is new."""
        if self._told.get(name) != line:
            self._told[name] = line
            self.report(f"{name}: {line}" if name else line)


def _how_it_was_killed(lease: Entry | None, state: str | None) -> str:
    """What the job's lease, if it came to take one and had time for a word, or else the queue says of its end."""
    if lease is not None and lease.content.get("reason"):
        return str(lease.content["reason"])
    return f"{state or 'no longer in the queue'}, {'before it began' if lease is None else 'without time for a word'}"


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C back for a moment: a job must not be submitted without a note of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
