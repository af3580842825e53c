"""A job's process under the lease of its folder: started here, or by a cluster on one of its machines (ours).

Loads next to nothing: on a cluster it stands beside the training for all of its time.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, MutableSet, Sequence
from pathlib import Path
from types import FrameType
from typing import Literal, NamedTuple

from anomalib_cxr.files import read_json, remove_link
from anomalib_cxr.leases import Lease, is_free, last_lease
from anomalib_cxr.run_folder import DONE, LOG

LOST = 75
"""Exit status of a process whose lease another one has taken."""
_LOOK_SECONDS = 1.0
# By these Lightning would take the process for one of several that SLURM started for one training.
_TASKS = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")


class Outcome(NamedTuple):
    """How a job's process ended.

    Attributes:
        ended: ``done``; ``failed`` by itself; ``killed`` from outside; or the job is another process's: ``elsewhere``.
        reason: Why, where it is not done.
    """

    ended: Literal["done", "failed", "killed", "elsewhere"]
    reason: str = ""


def is_complete(folder: Path) -> bool:
    """Whether the job of a folder was completed.

    Args:
        folder: Folder of a job.

    Returns:
        True if its last file is there and whole.
    """
    return "fit_seconds" in (read_json(folder / DONE) or {})


def run_process(
    command: Sequence[str],
    folder: Path,
    lease: Lease,
    environment: Mapping[str, str],
    running: MutableSet["subprocess.Popen[bytes]"],
) -> Outcome:
    """Run a job's process; its words go to ``log.txt``. It beats for the lease, and ends with this process.

    Args:
        command: Takes the folder and the file of the lease as its last arguments.
        folder: Folder of the job.
        lease: This process's lease of the folder.
        environment: Of the new process.
        running: Holds the process while it runs.

    Returns:
        How it ended.

    Raises:
        OSError: If the log cannot be written or the process not be started.
    """
    log_path = folder / LOG
    remove_link(log_path)
    with log_path.open("ab") as log:
        # The open pipe is how the job knows that this process lives.
        process = subprocess.Popen(
            [*command, str(folder), str(lease.path)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        running.add(process)
        try:
            status = process.wait()
        finally:
            running.discard(process)
            if process.stdin is not None:
                process.stdin.close()
    if status == 0 and is_complete(folder):
        return Outcome("done")
    lines = log_path.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    reason = f"exit status {status}: {last} (see {log_path})"
    return Outcome("elsewhere" if status == LOST else "killed" if status < 0 else "failed", reason)


def submitted(command: Sequence[str], folder: Path, digest: str) -> None:
    """What submitit starts on a machine of its cluster, see :func:`run_submitted`."""
    import submitit

    run_submitted(command, folder, submitit.JobEnvironment().job_id, digest)


def run_submitted(command: Sequence[str], folder: Path, name: str, digest: str) -> None:
    """Run a job on a machine of a cluster, unless it is done or another process works on it; then leave.

    How it ended stands in the lease, and the process leaves with status 1 unless the job is done. A cluster that ends
    it sends a signal first (SIGTERM, or submitit's SIGUSR2): the job's process is ended then, and the lease says so if
    there is time. If there is none, its last lease is one that never ended.

    Args:
        command: As for :func:`run_process`.
        folder: Folder of the job.
        name: What the cluster's queue calls it, kept in the lease.
        digest: Of the job's configuration, kept in the lease.
    """
    running: set[subprocess.Popen[bytes]] = set()
    received: list[str] = []

    def end(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        for process in list(running):
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, end)
    lease = _wait_for_lease(folder, received, job=name, digest=digest)
    if lease is None:
        return
    outcome = Outcome("killed")
    try:
        if is_complete(folder):
            outcome = Outcome("done")
        elif not received:
            environment = {key: value for key, value in os.environ.items() if key not in _TASKS}
            outcome = run_process(command, folder, lease, environment, running)
        if received and outcome.ended != "done":
            outcome = Outcome("killed", f"ended by {received[0]}: time limit, pre-emption or scancel")
    except OSError as error:
        outcome = Outcome("failed", f"{type(error).__name__}: {error}")
    finally:
        lease.release(*outcome)
    if outcome.ended != "done":
        raise SystemExit(1)


def _wait_for_lease(folder: Path, received: Sequence[str], **notes: str) -> Lease | None:
    """Take the lease of a folder; None if the job was done meanwhile, its holder lives, or a signal came."""
    begun = time.monotonic()
    while not received:
        lease = Lease.take(folder, **notes)
        if lease is not None:
            return lease
        last = last_lease(folder)
        # After so long it is free if its holder has not beaten: one that died elsewhere, as this job's former run.
        if is_complete(folder) or (last and not is_free(last) and time.monotonic() - begun > last.stale_after):
            return None
        time.sleep(_LOOK_SECONDS)
    return None
