"""Runs the jobs of a cross-validation in processes of their own, skips finished ones and survives failing ones."""

import logging
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
from anomalib_cxr.files import remove_link, write_text
from anomalib_cxr.pipelines.cross_validation.plan import CrossValidationJob, PlanError, read_json
from anomalib_cxr.run_folder import CONFIG, DONE, JOB_FOLDER, LOG

logger = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-m", "anomalib_cxr.pipelines.cross_validation.job")


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
    if not _is_complete(folder):
        return False
    if not _has_config(job, folder):
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
    if len(waiting) < len(jobs):
        report(f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are done already.")
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(parallel):
        slots.put(slot)
    environments = [_environment(slot, parallel) for slot in range(parallel)]
    running: set[subprocess.Popen[bytes]] = set()
    failed: dict[str, str] = {}

    def run(job: CrossValidationJob) -> tuple[str | None, float]:
        slot, start = slots.get(), time.monotonic()
        try:
            return _run_job(job, results / job.name, environments[slot], running), time.monotonic() - start
        except OSError as error:  # its folder cannot be made or written
            return f"{type(error).__name__}: {error}", time.monotonic() - start
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(parallel) as pool:
        try:
            futures = {pool.submit(run, job): job for job in waiting}
            for number, future in enumerate(as_completed(futures), len(jobs) - len(waiting) + 1):
                name = futures[future].name
                reason, seconds = future.result()
                if reason is not None:
                    failed[name] = reason
                report(
                    f"[{number}/{len(jobs)}] {name}: {'FAILED, ' + reason if reason else f'done in {seconds:.0f} s'}"
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    return failed


def _run_job(
    job: CrossValidationJob, folder: Path, environment: dict[str, str], running: set[subprocess.Popen[bytes]]
) -> str | None:
    """Run one job; the reason if it fails."""
    if not _has_config(job, folder):
        for name in JOB_FOLDER:  # of another configuration
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, f"# {job.digest}\n{yaml.safe_dump(job.config, sort_keys=False)}")
    log_path = folder / LOG
    remove_link(log_path)
    with log_path.open("ab") as log:
        # The open pipe is how the job knows that this process lives.
        process = subprocess.Popen(
            [*_COMMAND, str(folder)], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        running.add(process)
        try:
            status = process.wait()
        finally:
            running.discard(process)
            if process.stdin is not None:
                process.stdin.close()
    if status == 0 and _is_complete(folder):
        return None
    lines = log_path.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"exit status {status}: {last} (see {log_path})"


def _is_complete(folder: Path) -> bool:
    return "fit_seconds" in (read_json(folder / DONE) or {})


def _has_config(job: CrossValidationJob, folder: Path) -> bool:
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
