"""Runs the jobs of a cross-validation in processes of their own, skips finished ones and survives failing ones.

Another command, here or on another machine, may work through the same folder: each job is run by one of them.
"""

import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import yaml

from anomalib_cxr.cores import available_cores
from anomalib_cxr.files import read_json, write_text
from anomalib_cxr.leased_process import Outcome, is_complete, run_process
from anomalib_cxr.leases import Lease, last_lease, leases
from anomalib_cxr.pipelines.cross_validation.plan import CrossValidationJob, PlanError
from anomalib_cxr.run_folder import CONFIG, DONE, JOB_FOLDER

COMMAND: tuple[str, ...] = (sys.executable, "-m", "anomalib_cxr.pipelines.cross_validation.job")
"""Process of a job: takes its folder and the lease."""
_LOOK_SECONDS = 5.0  # between two looks at jobs that others work on


def is_done(job: CrossValidationJob, results: Path) -> bool:
    """Whether a job was completed with this very configuration.

    Args:
        job: The job.
        results: Folder of the results.

    Returns:
        True if it need not be run.

    Raises:
        PlanError: If it was completed with another configuration: its figures must not be mixed with new ones.
    """
    folder = results / job.name
    if not is_complete(folder):
        return False
    if not has_config(job, folder):
        msg = (
            f"{folder} was done with another configuration: give another results folder, or delete this one to run it "
            "again."
        )
        raise PlanError(msg)
    return True


def run_jobs(
    jobs: Sequence[CrossValidationJob],
    results: Path,
    parallel: int = 1,
    report: Callable[[str], None] = print,
) -> dict[str, str]:
    """Run all jobs that are not done.

    Every job is a process whose words go to ``log.txt`` in its folder. The processes end with this one, even if it is
    killed. Where there are several GPUs, each process sees one of them; on a CPU the processes share its cores.

    Args:
        jobs: The jobs.
        results: Folder of the results.
        parallel: Processes at a time.
        report: Takes one line of progress after another.

    Returns:
        Reason for each job that failed, by its name.

    Raises:
        PlanError: If a job was completed with another configuration; nothing is run then.
    """
    waiting = [job for job in jobs if not is_done(job, results)]
    finished = len(jobs) - len(waiting)
    if finished:
        report(f"{finished} of {len(jobs)} jobs are done already.")
    before = lease_numbers(waiting, results)
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(parallel):
        slots.put(slot)
    environments = [_environment(slot, parallel) for slot in range(parallel)]
    running: set[subprocess.Popen[bytes]] = set()
    failed: dict[str, str] = {}

    def run(job: CrossValidationJob) -> tuple[Outcome, float]:
        slot, start = slots.get(), time.monotonic()
        try:
            outcome = _run_job(job, results, environments[slot], running, before[job.name])
        except OSError as error:  # its folder cannot be made or written
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        finally:
            slots.put(slot)
        return outcome, time.monotonic() - start

    with ThreadPoolExecutor(parallel) as pool:
        try:
            told: set[str] = set()
            while waiting:
                futures = {pool.submit(run, job): job for job in waiting}
                for future in as_completed(futures):
                    job = futures[future]
                    outcome, seconds = future.result()
                    if outcome.ended == "elsewhere":
                        if job.name not in told:
                            report(f"{job.name}: {outcome.reason}")
                            told.add(job.name)
                        continue
                    waiting.remove(job)
                    finished += 1
                    if outcome.ended != "done":
                        failed[job.name] = outcome.reason
                    shown = f"done in {seconds:.0f} s" if outcome.ended == "done" else f"FAILED, {outcome.reason}"
                    report(f"[{finished}/{len(jobs)}] {job.name}: {shown}")
                if waiting:
                    time.sleep(_LOOK_SECONDS)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    return failed


def _run_job(
    job: CrossValidationJob,
    results: Path,
    environment: dict[str, str],
    running: set["subprocess.Popen[bytes]"],
    before: int,
) -> Outcome:
    """Run one job, unless another command works on it, or has done so since this one began."""
    folder = results / job.name
    lease = Lease.take(folder, digest=job.digest)
    if lease is None:
        last = last_lease(folder)
        return Outcome("elsewhere", f"{last.owner if last else 'another process'} works on it.")
    outcome = Outcome("killed", "the command was ended")
    try:
        elsewhere = failure_since(job, results, before)
        if is_done(job, results):
            outcome = Outcome("done")
        elif elsewhere is not None:
            outcome = Outcome("failed", elsewhere)
        else:
            prepare_folder(job, folder)
            outcome = run_process(COMMAND, folder, lease, environment, running)
    finally:
        lease.release(*outcome)
    return outcome


def lease_numbers(jobs: Sequence[CrossValidationJob], results: Path) -> dict[str, int]:
    """Note how often each job has been worked on, so that what others do from now on is told from what was before.

    Args:
        jobs: The jobs.
        results: Folder of the results.

    Returns:
        Number of the last lease of each job, by its name.
    """
    last = {job.name: last_lease(results / job.name) for job in jobs}
    return {name: entry.number if entry else 0 for name, entry in last.items()}


def failure_since(job: CrossValidationJob, results: Path, before: int) -> str | None:
    """Look whether another command has seen the job fail by itself since this one began: it would fail again.

    Args:
        job: The job.
        results: Folder of the results.
        before: Number of the last lease when this command began.

    Returns:
        Why it failed; None if it did not.
    """
    for entry in leases(results / job.name):
        if entry.number <= before:
            break
        if entry.ended == "failed" and entry.content.get("digest") == job.digest:
            return str(entry.content.get("reason"))
    return None


def prepare_folder(job: CrossValidationJob, folder: Path) -> None:
    """Write a job's configuration into its folder; what another configuration left there is cleared away.

    Args:
        job: The job.
        folder: Its folder, which this process has the lease of.

    Raises:
        OSError: If it cannot be written.
    """
    if not has_config(job, folder):
        for name in JOB_FOLDER:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, f"# {job.digest}\n{yaml.safe_dump(job.config, sort_keys=False)}")


def has_config(job: CrossValidationJob, folder: Path) -> bool:
    """Whether a folder holds this very configuration.

    Args:
        job: The job.
        folder: Its folder.

    Returns:
        True if what lies there is of this configuration.
    """
    path = folder / CONFIG
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(f"# {job.digest}\n")


def _environment(slot: int, parallel: int) -> dict[str, str]:
    """Environment of the processes of a slot: its GPU, or its share of the cores."""
    environment = dict(os.environ)
    visible = _gpus()
    if len(visible) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    if parallel > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // parallel)))
    return environment


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def read_done(job: CrossValidationJob, results: Path) -> dict[str, float]:
    """Read what a finished job notes of itself.

    Args:
        job: The job.
        results: Folder of the results.

    Returns:
        ``fit_seconds`` of the training, null where it was cut off in between, and more.
    """
    return read_json(results / job.name / DONE) or {"fit_seconds": None}
