"""Metrics of one finding in Anomalib's Evaluator, against scikit-learn on rows chosen by hand, and from YAML."""

import math
import multiprocessing

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from jsonargparse import ArgumentParser
from sklearn import metrics as sk

import anomalib_cxr.metrics as ours
from anomalib_cxr.data import RadiographBatch

CELLS = [
    "",
    "edema",
    "edema",
    "Edema |nodule",
    "nodule|pleural effusion",
    "EDEMA|pleural  effusion",
    "edematous change",
]
THREE = (ours.FindingAUROC, ours.FindingAccuracy, ours.FindingF1Score)


def drawn(number: int = 200) -> pd.DataFrame:
    """Images with scores beyond a sigmoid's float32, a third of them normal, some abnormal ones without finding."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"findings": rng.choice(CELLS, number), "abnormal": rng.random(number) < 2 / 3})
    table["score"] = (30 + 10 * table["abnormal"] + 10 * rng.normal(size=number)).astype(np.float32)
    table["image"] = [f"film_{i}.png" for i in range(number)]
    table.loc[~table["abnormal"] & (table.index % 2 == 0), "findings"] = ""  # normals with findings stay normals
    return table


def batch_of(table: pd.DataFrame, threshold: float = 36.0, cls: type = RadiographBatch, **changes) -> ImageBatch:
    fields = {
        "image": torch.zeros(len(table), 3, 2, 2),
        "pred_score": torch.tensor(table["score"].to_numpy()),
        "pred_label": torch.tensor((table["score"] >= threshold).to_numpy()),
        "gt_label": torch.tensor(table["abnormal"].to_numpy()),
        "image_path": table["image"].tolist(),
    }
    if cls is RadiographBatch:
        fields["findings"] = table["findings"].tolist()
    return cls(**(fields | changes))


def computed(metric, *batches) -> float:
    for batch in batches:
        metric.update(batch)
    return float(metric.compute())


def chosen(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Rows that a finding's metrics are of: all normal images, and abnormal ones whose text matches."""
    return table[~table["abnormal"] | table["findings"].str.contains(pattern)]


@pytest.mark.parametrize(
    ("finding", "pattern"),
    [
        ("edema", r"(?i)\bedema\b"),
        ("Nodule", r"\bnodule\b"),
        (" pleural effusion ", r"(?i)pleural\s+effusion"),
        ("edematous change", "edematous"),
    ],
)
def test_values_are_those_of_scikit_learn_on_the_findings_images_and_all_normal_ones(finding, pattern) -> None:
    table = drawn()
    batches = [batch_of(table[:7]), batch_of(table[7:90]), batch_of(table[90:91]), batch_of(table[91:])]
    rows = chosen(table, pattern)
    truth, decisions = rows["abnormal"], rows["score"] >= 36
    expected = [
        sk.roc_auc_score(truth, rows["score"]), sk.accuracy_score(truth, decisions), sk.f1_score(truth, decisions)
    ]  # fmt: skip
    assert [computed(metric(finding), *batches) for metric in THREE] == pytest.approx(expected, abs=1e-6)
    assert computed(ours.FindingCases(finding), *batches) == truth.sum()
    assert all(0.2 < value < 0.95 for value in expected)  # nothing here is trivially right


def test_values_are_those_of_the_table_by_finding() -> None:
    table = drawn()
    labels = np.where(table["abnormal"], "abnormal", "normal")
    predictions = table.assign(label=labels, raw_score=table["score"].astype(float), patient_id=table["image"])
    result = ours.finding_table(predictions, threshold=36.0, draws=5).set_index("finding")
    assert sorted(result.index) == ["edema", "edematous change", "nodule", "pleural effusion"]
    for finding, row in result.iterrows():
        values = [computed(metric(finding), batch_of(table)) for metric in (*THREE, ours.FindingCases)]
        assert values == pytest.approx(row[["AUROC", "accuracy", "F1", "cases"]].tolist(), abs=1e-6)


def test_a_batch_of_other_findings_alone_changes_nothing() -> None:
    table = drawn()
    others = table[table["abnormal"] & (table["findings"] == "edematous change")]
    assert len(others) > 5
    for metric in (*THREE, ours.FindingCases):
        alone = computed(metric("nodule"), batch_of(table))
        assert computed(metric("nodule"), batch_of(others), batch_of(table)) == alone


def test_reset_forgets_images_and_findings(caplog) -> None:
    table = drawn()
    metric = ours.FindingAccuracy("nodule")
    computed(metric, batch_of(table))
    metric.reset()
    half = table[table["findings"].isin(["", "edema"])]
    assert math.isnan(computed(metric, batch_of(half)))
    assert "There are: edema (" in caplog.text
    assert "pleural" not in caplog.text
    assert metric.cases == 0
    metric.reset()
    rows = chosen(table, "nodule")
    assert computed(metric, batch_of(rows)) == pytest.approx(
        sk.accuracy_score(rows["abnormal"], rows["score"] >= 36), abs=1e-6
    )


@pytest.mark.parametrize("metric", [*THREE, ours.FindingCases])
def test_nan_scores_are_refused_and_the_images_named(metric) -> None:
    table = drawn(20)
    table.loc[3, "score"] = np.nan
    with pytest.raises(
        ValueError, match=r"1 of 20 values of pred_score are NaN or infinite, at the images film_3\.png"
    ):
        metric("nodule").update(batch_of(table))


def test_a_missing_class_makes_nan_with_a_reason(caplog) -> None:
    table = drawn()
    for metric in THREE:
        caplog.clear()
        assert math.isnan(computed(metric("nodule", prefix="image_"), batch_of(table[table["abnormal"]])))
        assert f"image_{metric.__name__.removeprefix('Finding')}_nodule is not defined (NaN): no image is normal" in (
            caplog.text
        )
        caplog.clear()
        assert math.isnan(computed(metric("nodul"), batch_of(table)))
        assert "no abnormal image has the finding 'nodul', did you mean 'nodule'? There are: edema (" in caplog.text
        caplog.clear()
        assert math.isnan(computed(metric("nodule"), batch_of(table[~table["abnormal"]])))
        assert "has the finding 'nodule', nor any other" in caplog.text
    assert computed(ours.FindingCases("nodul"), batch_of(table)) == 0


def test_few_images_are_said_once(caplog) -> None:
    table = pd.concat([drawn()[lambda t: ~t["abnormal"]], drawn()[lambda t: t["findings"] == "Edema |nodule"].head(9)])
    metric = ours.FindingAUROC("nodule")
    for _ in range(2):
        assert not math.isnan(computed(metric, batch_of(table)))
        metric.reset()
    assert caplog.text.count("rests on ") == 1
    number = int(table["abnormal"].sum())
    normals = int((~table["abnormal"]).sum())
    assert f"AUROC_nodule rests on {number} images with the finding (fewer than 10) and {normals} normal ones" in (
        caplog.text
    )


def test_an_unknown_finding_is_refused_with_those_that_exist() -> None:
    cells = {"edema|nodule": 3, "Edema": 2, "edema": 1, "": 4}
    ours.FindingAUROC("EDEMA ").check_findings(cells)
    expected = r"image_AUROC_oedema: no abnormal image has the finding 'oedema', did you mean 'edema'\? "
    with pytest.raises(ValueError, match=expected + r"There are: edema \(6\), nodule \(3\)\.$"):
        ours.FindingAUROC("oedema", prefix="image_").check_findings(cells)
    many = {f"finding {i}": 100 - i for i in range(30)}
    with pytest.raises(ValueError, match=r"'xyz'; There are: finding 0 \(100\), .*finding 19 \(81\) and 10 more\."):
        ours.FindingF1Score("xyz").check_findings(many)


def test_a_batch_without_findings_is_refused_in_one_sentence() -> None:
    batch = batch_of(drawn(), cls=ImageBatch)
    with pytest.raises(ValueError, match=r"image_F1Score_nodule: the batch has no findings \(ImageBatch\); use a data"):
        ours.FindingF1Score("nodule", prefix="image_").update(batch)
    with pytest.raises(ValueError, match="does not have a value for field with name pred_label"):
        ours.FindingF1Score("nodule").update(batch_of(drawn(), pred_label=None))
    with pytest.raises(ValueError, match=r"AUROC_nodule: the batch has no labels \(RadiographBatch\)"):
        ours.FindingAUROC("nodule", fields=["pred_score", "pred_label"]).update(batch_of(drawn(), gt_label=None))
    for metric in (*THREE, ours.FindingCases):
        lenient = metric("nodule", strict=False)
        lenient.update(batch)
        lenient.update(batch_of(drawn(), gt_label=None))
        assert lenient.compute() is None


@pytest.mark.parametrize("name", ["", "  ", "edema|nodule"])
def test_a_metric_is_of_one_finding(name) -> None:
    with pytest.raises(ValueError, match="takes the name of one finding"):
        ours.FindingAUROC(name)


def test_names_hold_no_slash_and_no_spaces() -> None:
    name = ours.FindingAccuracy("No Lung Opacity / Not Normal", prefix="image_").name
    assert name == "image_Accuracy_no_lung_opacity_not_normal"


CONFIG = """
evaluator:
  class_path: {evaluator}
  init_args:
    {arguments}
"""


@pytest.mark.parametrize(
    ("evaluator", "arguments", "names"),
    [
        (
            "anomalib.metrics.Evaluator",
            "test_metrics: [{class_path: anomalib_cxr.metrics.FindingAUROC, init_args: {finding: Nodule, prefix: a_}}]",
            {"a_AUROC_nodule"},
        ),
        (
            "anomalib_cxr.metrics.FindingEvaluator",
            "findings: [nodule, pleural effusion]",
            {"image_AUROC", "image_Accuracy", "image_F1Score"}
            | {
                f"image_{measure}_{finding}"
                for measure in ("AUROC", "Accuracy", "F1Score", "Cases")
                for finding in ("nodule", "pleural_effusion")
            },
        ),
        (
            "anomalib_cxr.metrics.FindingEvaluator",
            "{findings: [nodule], test_metrics: [{class_path: anomalib_cxr.metrics.AUPR}]}",
            {"AUPR", *(f"image_{measure}_nodule" for measure in ("AUROC", "Accuracy", "F1Score", "Cases"))},
        ),
    ],
)
def test_an_evaluator_from_yaml_measures_findings(tmp_path, evaluator, arguments, names) -> None:
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(Evaluator, "evaluator")
    (tmp_path / "config.yaml").write_text(CONFIG.format(evaluator=evaluator, arguments=arguments))
    parsed = parser.parse_args(["--config", str(tmp_path / "config.yaml")])
    built = parser.instantiate_classes(parsed).evaluator
    built.on_test_batch_end(None, None, None, batch_of(drawn()), 0)
    values = {metric.name: float(metric.compute()) for metric in built.test_metrics}
    assert set(values) == names
    assert all(0.3 < value < 1 for name, value in values.items() if "Cases" not in name)
    if evaluator.startswith("anomalib_cxr"):
        assert [metric.name for metric in built.val_metrics] == ["image_AUROC"]  # by which checkpoints are chosen


@pytest.mark.parametrize("findings", [[], ["edema", "Edema "]])
def test_an_evaluator_wants_each_finding_once(findings) -> None:
    with pytest.raises(ValueError, match="takes at least one finding, each once"):
        ours.FindingEvaluator(findings)


def _share(rank: int, folder: str, is_useless: bool, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    table = drawn()
    useless = table["abnormal"] & (table["findings"] == "edema")  # none that any of these metrics uses
    first = (table.index < 80) | is_useless
    parts = [table[first & ~useless]] if rank == 0 else [table[useless], table[~first & ~useless]]
    batches = [batch_of(part) for part in parts if len(part)]
    queue.put((rank, [computed(metric("nodule"), *batches) for metric in (*THREE, ours.FindingCases)]))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("is_useless", [False, True], ids=["both", "one_sees_nothing_of_use"])
def test_two_processes_measure_what_one_does(is_useless, tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_share, args=(rank, str(tmp_path), is_useless, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    values = dict(queue.get(timeout=20) for _ in processes)
    for process in processes:
        process.join()
    expected = [computed(metric("nodule"), batch_of(drawn())) for metric in (*THREE, ours.FindingCases)]
    assert values == {0: pytest.approx(expected, abs=1e-6), 1: pytest.approx(expected, abs=1e-6)}
