"""SLURM as the place where jobs run, by way of submitit."""

import getpass
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomalib_cxr.leased_process import submitted

_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"
}  # fmt: skip
_FOLDER = ".slurm"
_WARNING_SECONDS = 30  # between the signal that the time is up and the end: enough to say so in the lease


class SlurmError(ValueError):
    """A job cannot be given to SLURM; the message says why."""


@dataclass
class SlurmOptions:
    """What one job asks of SLURM.

    Args:
        partition: Partition; None for the cluster's default.
        time: Minutes after which SLURM ends the job; it is submitted again then, and goes on from its last checkpoint.
        gpus: GPUs.
        memory: Memory in GiB.
        cpus: CPU cores.
        extra: Other options of sbatch by their long names, such as ``{account: x, qos: y}``.
    """

    partition: str | None = None
    time: int = 240
    gpus: int = 0
    memory: float = 16.0
    cpus: int = 4
    extra: dict[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("time", 1), ("gpus", 0), ("cpus", 1)):
            if getattr(self, name) < least:
                msg = f"slurm.{name} must be at least {least}, got {getattr(self, name)}."
                raise SlurmError(msg)
        if not 0 < self.memory < float("inf"):
            msg = f"slurm.memory must be a positive number of GiB, got {self.memory}."
            raise SlurmError(msg)


class SlurmCluster:
    """Submits jobs and looks them up in the queue.

    Args:
        options: What each job asks for.
        results: Folder of the results; submitit's own files lie in ``.slurm`` there.

    Raises:
        SlurmError: If submitit is not installed, or there is no SLURM here.
    """

    kind = "slurm"

    def __init__(self, options: SlurmOptions, results: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            msg = 'launcher slurm needs submitit: pip install "anomalib-cxr[slurm]"'
            raise SlurmError(msg) from error
        if self.kind == "slurm" and not all(map(shutil.which, ("sbatch", "srun", "squeue"))):
            msg = "launcher slurm needs sbatch, srun and squeue: start the command on a machine of the cluster."
            raise SlurmError(msg)
        self.results = results
        self.executor = submitit.AutoExecutor(results / _FOLDER / "%j", cluster=self.kind)
        self.executor.update_parameters(
            name="anomalib-cxr",
            timeout_min=options.time,
            gpus_per_node=options.gpus or None,
            mem_gb=options.memory,
            cpus_per_task=options.cpus,
            slurm_partition=options.partition,
            slurm_signal_delay_s=_WARNING_SECONDS,
            slurm_additional_parameters=options.extra or None,
        )

    @property
    def user(self) -> str:
        """Whose jobs they are."""
        return getpass.getuser()

    def words(self, job: str) -> Path:
        """Where SLURM and submitit say what went wrong before the job could say it."""
        return self.results / _FOLDER / job

    def submit(self, command: Sequence[str], folder: Path, digest: str) -> str:
        """Submit one job.

        Args:
            command: See :func:`~anomalib_cxr.leased_process.run_submitted`.
            folder: Folder of the job.
            digest: Of its configuration.

        Returns:
            What the queue calls it.

        Raises:
            SlurmError: If SLURM refuses it.
        """
        try:
            return str(self.executor.submit(submitted, command, folder, digest).job_id)
        except (RuntimeError, OSError) as error:  # submitit's errors are RuntimeErrors with all that sbatch said
            said = re.findall(r"sbatch: error: (.*)", str(error)) or [str(error)]
            msg = f"SLURM refused {folder}: {said[-1].strip()}"
            raise SlurmError(msg) from error

    def states(self, users: Collection[str]) -> dict[str, str] | None:
        """Look all jobs up that are in the queue or have left it of late.

        The queue is asked (squeue) and not the accounting, which not every cluster has.

        Args:
            users: Whose jobs.

        Returns:
            State of each job, by what the queue calls it; None if the queue did not answer.
        """
        asked = ["squeue", "--noheader", "--states=all", "--format=%i %T", f"--user={','.join(sorted(users))}"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        if answer.returncode or "error" in answer.stderr:
            return None
        return dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if line.strip())

    @staticmethod
    def is_alive(state: str | None) -> bool:
        """Whether a job of this state waits, runs or will run again; one that the queue does not know has ended."""
        return state is not None and state.split()[0] not in _ENDED
