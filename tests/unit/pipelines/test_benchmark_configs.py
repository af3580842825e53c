"""The comparison configurations: every class exists and takes its arguments, every model has its own length."""

import importlib
import inspect
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
import yaml
from anomalib.models.components.feature_extractors import TimmFeatureExtractor
from anomalib.pipelines.benchmark.generator import BenchmarkJobGenerator

import anomalib_cxr.plugin
from anomalib_cxr.data import PhantomCXR
from anomalib_cxr.models.components.step_training import StepTrainingMixin
from anomalib_cxr.pipelines import CrossValidate
from anomalib_cxr.pipelines.cross_validation.plan import CrossValidationJob, plan_jobs

CONFIGS = Path(__file__).parents[3] / "configs" / "benchmark"
NAMES = ("zhanglab", "chexpert", "rsna", "padchest", "nih", "vindr_cxr", "phantom")
SPECIAL = (
    "localisation", "montgomery", "bmad_chest", "medianomaly", "cluster_check", "kim2023", "anatpaste_table1",
    "foundation",
)  # fmt: skip


def plan(name: str) -> list[CrossValidationJob]:
    parser = CrossValidate.get_parser()
    args = parser.instantiate_classes(parser.parse_args(["--config", str(CONFIGS / f"{name}.yaml")]))
    jobs = plan_jobs(args.data, args.models, args.folds, args.num_folds, args.seeds, args.trainer)
    assert len(jobs) == len(args.data) * len(args.models) * len(args.seeds) * (len(args.folds) if args.folds else 1)
    return jobs


def find(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", [*NAMES, *SPECIAL])
def test_a_configuration_can_be_carried_out(name: str) -> None:
    for job in plan(name):
        inspect.signature(find(job.config["model"]["class_path"])).bind(**job.config["model"]["init_args"])
        data_arguments = job.config["data"]["init_args"]
        find(job.config["data"]["class_path"])(**data_arguments)  # reads nothing before its set-up


@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_has_both_detectors_and_six_built_in_ones(name: str) -> None:
    jobs = plan(name)
    built_in = 0
    for job in jobs:
        model = find(job.config["model"]["class_path"])
        if not issubclass(model, StepTrainingMixin):
            built_in += 1
            one_pass = model.__name__ in {"Padim", "Patchcore", "Dfkde", "Dfm", "MHPatchcore"}
            assert one_pass != ("max_epochs" in job.config["trainer"]), f"{job.name} would run 1000 epochs"
    per_model = Counter(job.model for job in jobs)
    assert built_in / per_model[jobs[0].model] >= 6
    ours = {"anatpaste", "cutpaste_normal", "cutpaste_scar", "cutpaste_3way", "cutpaste_union", "multires_patch_ssl"}
    assert ours <= set(per_model)


@pytest.mark.parametrize("name", ["zhanglab", "phantom"])
def test_the_rivals_have_the_features_of_our_frozen_map(name: str) -> None:
    models = {job.model: job.config["model"] for job in plan(name)}
    rivals = {"mh_patchcore": "MHPatchcore", "dfm": "Dfm", "supersimplenet": "Supersimplenet", "draem": "Draem"}
    for rival, kind in rivals.items():
        assert find(models[rival]["class_path"]).__name__ == kind
        backbone = models[rival]["init_args"].get("backbone")
        assert backbone == (None if rival == "draem" else models["multires_frozen"]["init_args"]["backbone"])


def test_all_models_of_the_localisation_measure_the_same() -> None:
    jobs = plan("localisation")
    assert {"anatpaste", "multires_patch_ssl", "padim", "patchcore"} <= {job.model for job in jobs}
    for job in jobs:
        arguments = job.config["model"]["init_args"]
        metrics = arguments["evaluator"]["init_args"]["test_metrics"]
        built = [find(metric["class_path"])(**metric["init_args"]) for metric in metrics]
        assert [metric.name for metric in built] == ["pixel_AUROC", "pixel_AUPRO"]


def test_each_rival_on_a_foundation_encoder_stands_beside_ours_on_the_same_weights() -> None:
    encoders: dict[str, set[str]] = {}
    for job in plan("foundation"):
        arguments = job.config["model"]["init_args"]
        encoder = arguments.get("encoder_name") or arguments["backbone"]
        encoders.setdefault(encoder, set()).add(job.config["model"]["class_path"].rpartition(".")[2])
    ours = {"MultiResPatchSSL", "FeatureDensity"}
    rivals = [models - ours for models in encoders.values()]
    assert all(ours < models for models in encoders.values())
    assert set().union(*rivals) == {"Dinomaly", "InpFormer", "AnomalyDINO", "Rad"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [job.model for job in plan("foundation")])
def test_models_on_foundation_encoders_are_built_with_random_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **named: create(*args, **{**named, "pretrained": False}))
    (job,) = (job for job in plan("foundation") if job.model == name)
    model = find(job.config["model"]["class_path"])(**job.config["model"]["init_args"])
    images = model.pre_processor.transform(torch.rand(1, 3, 600, 500))
    encoders = [part for part in model.model.modules() if isinstance(part, TimmFeatureExtractor)]
    with torch.no_grad():
        found = encoders[0](images) if encoders else model.model.features(images)
    for part in found.values() if isinstance(found, dict) else found:
        assert part.isfinite().all()
        assert part.std() > 0


def test_no_configuration_is_left_out() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*NAMES, *SPECIAL, "stock_benchmark"}


def test_anomalibs_own_benchmark_can_carry_out_its_configuration() -> None:
    anomalib_cxr.plugin.register()
    config = yaml.safe_load((CONFIGS / "stock_benchmark.yaml").read_text())["benchmark"]
    jobs = list(BenchmarkJobGenerator(accelerator="cpu").generate_jobs(config, None))
    names = [type(job.model).__name__ for job in jobs]
    assert names == ["AnatPaste", "MultiResPatchSSL", "Padim", "Dfm"]
    for job in jobs:
        assert isinstance(job.datamodule, PhantomCXR)
        epochs, steps = job.model.trainer_arguments["max_epochs"], getattr(job.model, "steps_per_epoch", None)
        short = epochs == 1 if steps is None else 0 < epochs * steps < 1000
        assert short, f"{type(job.model).__name__} runs long"
