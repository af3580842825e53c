"""From configuration to jobs."""

import pytest

from anomalib_cxr.pipelines.cross_validation.plan import PlanError, plan_jobs

DATA = {"own": {"class_path": "anomalib_cxr.data.RadiographTable", "init_args": {"root": "x", "train_batch_size": 8}}}
MODELS = {
    "ours": {"class_path": "AnatPaste", "init_args": {"max_steps": 4}, "data": {"train_batch_size": 64}},
    "padim": {"class_path": "anomalib.models.Padim", "trainer": {"max_epochs": 3, "logger": True}},
}


def test_jobs_are_data_times_models_times_folds_times_seeds() -> None:
    data = DATA | {"other": DATA["own"]}
    jobs = plan_jobs(data, MODELS, [0, 3], 5, [7, 8], {"accelerator": "cpu"})
    assert len({job.name for job in jobs}) == len(jobs) == 2 * 2 * 2 * 2
    assert len({job.digest for job in jobs}) == 8  # own and other are the same data
    assert jobs[0].name == "own/ours/fold_0_seed_7"
    assert [job.seed for job in jobs] == [7] * 8 + [8] * 8


def test_each_model_has_arguments_of_its_own() -> None:
    ours, padim = plan_jobs(DATA, MODELS, [2], 5, [3], {"accelerator": "cpu", "max_epochs": 9})
    assert ours.config["model"] == {
        "class_path": "anomalib_cxr.models.anat_paste.lightning_model.AnatPaste",
        "init_args": {"max_steps": 4, "seed": 3},
    }
    assert padim.config["model"]["init_args"] == {}  # Padim takes no seed: the global one serves it
    assert padim.config["seed_everything"] == 3
    assert ours.config["data"]["init_args"] | {"root": ""} == {
        "root": "", "train_batch_size": 64, "fold": 2, "num_folds": 5
    }  # fmt: skip
    assert padim.config["data"]["init_args"]["train_batch_size"] == 8
    assert (ours.config["trainer"]["max_epochs"], padim.config["trainer"]["max_epochs"]) == (9, 3)
    assert (ours.config["trainer"]["logger"], padim.config["trainer"]["logger"]) == (False, True)


def test_without_folds_the_set_keeps_its_own_split() -> None:
    data = {"phantom": {"class_path": "PhantomCXR"}}
    (job,) = plan_jobs(data, {"padim": {"class_path": "Padim"}}, None, 5, [0])
    assert job.name == "phantom/padim/seed_0"
    assert "fold" not in job.config["data"]["init_args"]


def test_the_root_is_absolute_and_can_be_replaced(tmp_path) -> None:
    jobs = [plan_jobs(DATA, MODELS, None, 5, [0], root=root)[0] for root in (None, tmp_path)]
    roots = [job.config["data"]["init_args"]["root"] for job in jobs]
    assert roots[1] == str(tmp_path)
    assert roots[0].endswith("/x")
    assert roots[0].startswith("/")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {}}, "no data"),
        ({"models": {"a/b": MODELS["padim"]}}, "becomes a folder"),
        ({"models": {"a": {"init_args": {}}}}, r"models\.a needs a class_path"),
        ({"models": {"a": MODELS["padim"] | {"triner": {}}}}, "triner"),
        ({"models": {"a": {"class_path": "NoSuchModel"}}}, "no class NoSuchModel"),
        ({"models": {"a": {"class_path": "no.such.Model"}}}, "no class no.such.Model"),
        ({"models": {"a": {"class_path": "AnatPaste", "init_args": {"seed": 1}}}}, "leave seed out"),
        ({"data": {"p": {"class_path": "PhantomCXR"}}}, "PhantomCXR has no folds"),
        ({"folds": [0, 5]}, "below num_folds=5"),
        ({"folds": [0, 0]}, "different numbers"),
        ({"seeds": []}, "seeds must list"),
        ({"data": DATA | {"b": DATA["own"]}, "root": "/r"}, "root of one data set"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_at_once(change, said) -> None:
    arguments = {"data": DATA, "models": MODELS, "folds": [0], "num_folds": 5, "seeds": [0]} | change
    with pytest.raises(PlanError, match=said):
        plan_jobs(**arguments)
