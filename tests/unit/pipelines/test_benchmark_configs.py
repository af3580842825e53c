"""The comparison configurations: every class exists and takes its arguments, every model has its own length."""

import importlib
import inspect
from collections import Counter
from pathlib import Path

import pytest

from anomalib_cxr.models.one_class import OneClassTraining
from anomalib_cxr.pipelines import CrossValidate
from anomalib_cxr.pipelines.cross_validation_plan import plan_jobs

CONFIGS = Path(__file__).parents[3] / "configs" / "benchmark"
NAMES = ("zhanglab", "chexpert", "rsna", "padchest", "phantom")


def find(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_can_be_carried_out(name: str) -> None:
    parser = CrossValidate.get_parser()
    args = parser.instantiate_classes(parser.parse_args(["--config", str(CONFIGS / f"{name}.yaml")]))
    jobs = plan_jobs(args.data, args.models, args.folds, args.num_folds, args.seeds, args.trainer)
    assert len(jobs) == len(args.models) * len(args.seeds) * (len(args.folds) if args.folds else 1)
    built_in = 0
    for job in jobs:
        model = find(job.config["model"]["class_path"])
        inspect.signature(model).bind(**job.config["model"]["init_args"])
        data_arguments = job.config["data"]["init_args"]
        find(job.config["data"]["class_path"])(**data_arguments)  # reads nothing before its set-up
        if not issubclass(model, OneClassTraining):
            built_in += 1
            one_pass = model.__name__ in {"Padim", "Patchcore", "Dfkde"}
            assert one_pass != ("max_epochs" in job.config["trainer"]), f"{job.name} would run 1000 epochs"
    per_model = Counter(job.model for job in jobs)
    assert built_in / per_model[jobs[0].model] >= 6
    assert {"anatpaste", "cutpaste_normal", "cutpaste_scar", "cutpaste_3way", "multires_frozen"} <= set(per_model)


def test_no_configuration_is_left_out() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(NAMES)
