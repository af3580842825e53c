"""The file of predictions: it comes back as it went, and broken ones are refused with a reason."""

import numpy as np
import pandas as pd
import pytest

from anomalib_cxr.metrics import PredictionsError, check_same_images, read_predictions, write_predictions


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image": ["a/1.png", "a/NA", 'b,"2".dcm'],
            "patient_id": ["007", "NA", ""],
            "label": ["normal", "abnormal", ""],
            "findings": ["", "nodule|edema", ""],
            "raw_score": [0.1, np.float64(np.float32(0.3)), -4e9],
            "score": [0.25, 0.75, np.nan],
            "p_value": [0.5, np.nan, 1.0],
            "decision": ["normal", "abnormal", ""],
            "split_hash": ["ab" * 32] * 3,
        }
    )


def with_later(**changes: list[str]) -> pd.DataFrame:
    """The table with the columns that came later, empty but for changes."""
    return table().assign(picture="", assessable="", not_assessable_because="").assign(**changes)


def test_predictions_come_back_as_they_were(tmp_path) -> None:
    path = tmp_path / "run" / "predictions.csv"
    write_predictions(path, table())
    pd.testing.assert_frame_equal(read_predictions(path), with_later(), check_exact=True)
    drawn = with_later(
        picture=["images/ä b.png", "", "images/x,y.png"],
        decision=["normal", "not assessable", ""],
        assessable=["yes", "no", ""],
        not_assessable_because=["", "cut off at the top; too bright", ""],
    )
    write_predictions(path, drawn)
    pd.testing.assert_frame_equal(read_predictions(path), drawn, check_exact=True)


def test_a_file_without_pictures_is_read(tmp_path) -> None:
    """As version 0.1 wrote them."""
    path = tmp_path / "predictions.csv"
    table().to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_predictions(path), with_later(), check_exact=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["predictions.csv"]


def test_a_failed_write_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, table())
    with pytest.raises(PredictionsError, match=r"raw scores are NaN or infinite, at the images a/NA"):
        write_predictions(path, table().assign(raw_score=[1.0, np.nan, 2.0]))
    assert len(read_predictions(path)) == 3
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop(columns=["p_value", "label"]), r"lacks the columns \['label', 'p_value'\]"),
        (lambda t: t.assign(label=["normal", "sick", ""]), "'sick'"),
        (lambda t: t.assign(decision=["0", "1", ""]), "'0', '1'"),
        (lambda t: t.assign(label=["normal", "not assessable", ""]), r"'not assessable'\] in column label"),
        (
            lambda t: t.assign(assessable=["yes", "maybe", ""]),
            r"'maybe'\] in column assessable, use no, yes or nothing",
        ),
        (lambda t: t.assign(image=["a", "b", "a"]), "more than once, the first is a"),
        (lambda t: t.assign(raw_score=["1", "x", "2"]), "raw_score"),
        (lambda t: t.assign(raw_score=["1", "", "2"]), "NaN or infinite, at the images a/NA"),
        (lambda t: t[:0], "no image"),
    ],
)
def test_broken_files_are_refused(tmp_path, change, said) -> None:
    path = tmp_path / "predictions.csv"
    change(table()).to_csv(path, index=False)
    with pytest.raises(PredictionsError, match=said):
        read_predictions(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00nonsense", b'image,label\n"unclosed'])
def test_what_is_no_table_is_refused(tmp_path, content) -> None:
    path = tmp_path / "predictions.csv"
    path.write_bytes(content)
    with pytest.raises(PredictionsError, match=r"predictions\.csv"):
        read_predictions(path)
    with pytest.raises(PredictionsError, match="no predictions at"):
        read_predictions(tmp_path / "none.csv")
    with pytest.raises(PredictionsError, match="no table"):
        read_predictions(tmp_path)


def test_predictions_of_different_images_are_refused() -> None:
    a = table()
    b = a.iloc[::-1].reset_index(drop=True)
    assert check_same_images(a, b, "A", "B")["image"].tolist() == a["image"].tolist()
    with pytest.raises(PredictionsError, match=r"1 only in A, such as a/1\.png; 1 only in B, such as other"):
        check_same_images(a, b.replace("a/1.png", "other"), "A", "B")
    with pytest.raises(PredictionsError, match=r"disagree about the label of 1 images, the first is a/1\.png"):
        check_same_images(a, b.assign(label=["", "abnormal", "abnormal"]), "A", "B")
