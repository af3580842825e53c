"""`anomalib cross-validate`: models × data × folds × seeds, one table at the end."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from anomalib.pipelines.components.base import Pipeline
from anomalib.pipelines.components.base.runner import Runner
from filelock import FileLock
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from anomalib_cxr.csv_tables import write_table
from anomalib_cxr.files import write_text
from anomalib_cxr.metrics.thresholds import check_rule
from anomalib_cxr.pipelines.cross_validation.plan import CrossValidationJob, plan_jobs
from anomalib_cxr.pipelines.cross_validation.runner import is_done, run_jobs
from anomalib_cxr.pipelines.cross_validation.slurm import SlurmCluster, SlurmOptions
from anomalib_cxr.pipelines.cross_validation.submissions import Submissions
from anomalib_cxr.pipelines.cross_validation.table import evaluate_jobs, make_tables, to_markdown

logger = logging.getLogger(__name__)


class CrossValidate(Pipeline):
    """Train and test models on data sets over folds and seeds, and compare them in one table.

    ``anomalib cross-validate --config configs/benchmark/zhanglab.yaml --root /data/chest_xray --jobs 2``

    Each job keeps its predictions, pictures, weights and log in ``<results>/<data>/<model>/fold_<k>_seed_<s>``. Started
    again, the command skips what is done and goes on where it was cut off. Several commands, on several machines, may
    work through one folder: none runs a job that another one works on.
    """

    @staticmethod
    def get_parser(parser: ArgumentParser | None = None) -> ArgumentParser:
        """Take everything from the command line or a configuration file."""
        if parser is None:
            parser = ArgumentParser(description="Compare models on data sets over folds and seeds.")
            parser.add_argument("--config", action=ActionConfigFile, help="Configuration file.")
            parser.add_argument(
                "--results", type=Path, default=Path("results/cross_validation"), help="Results folder."
            )
            parser.add_argument("--data", type=dict, help="Name and class_path, init_args of each data set.")
            parser.add_argument(
                "--models",
                type=dict,
                help="Name and class_path, init_args of each model, with trainer and data arguments of its own.",
            )
            parser.add_argument("--folds", type=list[int] | None, default=None, help="Folds; null: the own split.")
            parser.add_argument("--num_folds", type=int, default=5, help="Number of folds.")
            parser.add_argument("--seeds", type=list[int], default=[0], help="Seeds of the trainings.")
            parser.add_argument("--trainer", type=dict | None, default=None, help="Trainer arguments of all.")
            parser.add_argument(
                "--threshold",
                type=str | dict[str, float],
                default="best_f1",
                help="On validation: best_f1, mid_range, {sensitivity: s}, or {false_positive_rate: f} from normal "
                "images alone.",
            )
            parser.add_argument("--draws", type=int, default=2000, help="Draws of the bootstrap over patients.")
            parser.add_argument("--level", type=float, default=0.95, help="Level of the intervals.")
            parser.add_argument("--root", type=Path | None, default=None, help="Root of the data set.")
            parser.add_argument("--jobs", type=int, default=1, help="Processes at a time, with launcher local.")
            parser.add_argument(
                "--launcher",
                type=Literal["local", "slurm"],
                default="local",
                help="Where jobs run: in processes of this machine, or each as a job of SLURM.",
            )
            parser.add_class_arguments(SlurmOptions, "slurm", help="What a job asks for, with launcher slurm.")
            parser.add_argument(
                "--retries",
                type=int,
                default=2,
                help="How often SLURM gets a job again that was killed, pre-empted or timed out; not one that failed.",
            )
            parser.add_argument(
                "--leave",
                type=bool,
                default=False,
                help="With launcher slurm: do not wait for the jobs. Started again, the command collects them.",
            )
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Run what is not done yet, and end with status 1 if a job failed.

        Args:
            args: Parsed arguments; None parses the command line.

        Raises:
            SystemExit: If the configuration cannot be carried out, or jobs failed; the table holds the others. With
                status 130 after Ctrl-C, which leaves jobs of SLURM as they are.
        """
        if args is None:
            args = self.get_parser().parse_args()
        try:
            self._run(args)
        except (ValueError, OSError) as error:
            raise SystemExit(f"anomalib cross-validate: {error}") from error

    @staticmethod
    def _run(args: Namespace) -> None:
        for name, least in (("jobs", 1), ("retries", 0)):
            if args[name] < least:
                msg = f"{name} must be at least {least}, got {args[name]}."
                raise ValueError(msg)
        if args.leave and args.launcher == "local":
            msg = "leave is for launcher slurm: processes of this machine end with the command."
            raise ValueError(msg)
        check_rule(args.threshold)
        jobs = plan_jobs(
            args.data or {}, args.models or {}, args.folds, args.num_folds, args.seeds, args.trainer, args.root
        )
        results = Path(args.results).resolve()
        results.mkdir(parents=True, exist_ok=True)
        left = ""
        if args.launcher == "slurm":
            failed, left = _submit(jobs, results, args)
        else:
            failed = run_jobs(jobs, results, args.jobs, _say)
        done = [job for job in jobs if is_done(job, results)]
        # Commands that share a machine end at the same moment, and their three files belong together.
        with FileLock(results / ".lock"):
            evaluated, broken = evaluate_jobs(done, results, args.threshold)
            failed |= broken
            lines = [f"{len(failed)} of {len(jobs)} jobs failed:", *(f"- {job}: {failed[job]}" for job in failed)]
            text = "\n".join(lines) if failed else ""
            if evaluated:
                planned = Counter((job.data, job.model) for job in jobs)
                single, table = make_tables(evaluated, planned, args.draws, args.level)
                for name, content in (("jobs.csv", single), ("table.csv", table)):
                    write_table(results / name, content)
                text = f"{to_markdown(table, args.threshold, args.draws, args.level)}\n\n{text}".rstrip()
                write_text(results / "table.md", f"{text}\n")
            _say("\n\n".join(part for part in (text, left) if part))
        if failed:
            raise SystemExit(1)

    def _setup_runners(self, args: dict) -> list[Runner]:
        """Nothing to set up: :meth:`run` does it all."""
        del args
        return []


def _say(line: str) -> None:
    print(line, flush=True)


def _submit(jobs: Sequence[CrossValidationJob], results: Path, args: Namespace) -> tuple[dict[str, str], str]:
    """Let SLURM run the jobs; the reason for each that failed, and what is to be known of those that go on."""
    cluster = SlurmCluster(SlurmOptions(**args.slurm.as_dict()), results)
    submissions = Submissions(jobs, results, cluster, args.retries, _say)
    try:
        submissions.collect(args.leave)
    except KeyboardInterrupt:
        _say(submissions.left())
        raise SystemExit(130) from None
    return submissions.failed, submissions.left()
