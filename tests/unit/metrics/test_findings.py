"""The table by finding, against selecting the rows by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from anomalib_cxr.metrics import finding_table


def predictions() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    findings = [""] * 20 + ["edema"] * 12 + ["edema|nodule"] * 5 + ["nodule "] * 4 + [""] * 2
    label = ["normal"] * 20 + ["abnormal"] * 23
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(43)], "label": label, "findings": findings})
    table["patient_id"] = [f"p{i // 2}" for i in range(43)]
    table["raw_score"] = 10 + rng.normal(size=43) + (table["label"] == "abnormal")
    return table


def test_each_finding_is_compared_with_all_normal_images() -> None:
    table = predictions()
    result = finding_table(table, threshold=10.5, draws=50).set_index("finding")
    assert result["cases"].to_dict() == {"edema": 17, "nodule": 9}
    assert (result["normals"] == 20).all()
    for finding in ("edema", "nodule"):
        rows = table[(table["label"] == "normal") | table["findings"].str.contains(finding)]
        labels, scores = (rows["label"] == "abnormal").to_numpy(), rows["raw_score"].to_numpy()
        expected = (
            roc_auc_score(labels, scores), accuracy_score(labels, scores >= 10.5), f1_score(labels, scores >= 10.5)
        )  # fmt: skip
        assert result.loc[finding, ["AUROC", "accuracy", "F1"]].tolist() == pytest.approx(expected)


def test_few_cases_are_shown_without_an_interval() -> None:
    result = finding_table(predictions(), threshold=10.5, draws=50).set_index("finding")
    low, value, high = result.loc["edema", ["AUROC_low", "AUROC", "AUROC_high"]]
    assert low < value < high
    assert result.loc["nodule", ["AUROC_low", "AUROC_high", "F1_low", "accuracy_high"]].isna().all()
    assert not np.isnan(result.loc["nodule", "AUROC"])


def test_abnormal_images_without_finding_are_counted_in_the_log(caplog) -> None:
    with caplog.at_level("INFO"):
        finding_table(predictions(), threshold=10.5, draws=5)
    assert "2 of 23 abnormal images have no finding" in caplog.text


def test_no_findings_no_rows() -> None:
    table = predictions().assign(findings="")
    assert len(finding_table(table, threshold=10.5)) == 0


def test_without_normal_images_it_is_refused() -> None:
    table = predictions()
    with pytest.raises(ValueError, match="there is none among the predictions"):
        finding_table(table[table["label"] == "abnormal"], threshold=10.5)


def test_unknown_patients_are_said(caplog) -> None:
    finding_table(predictions().assign(patient_id=""), threshold=10.5, draws=5)
    assert "43 of 43 images have no patient" in caplog.text
