"""The table of predictions: one row an image. All tables and reports are made from it, without a model."""

import logging
from pathlib import Path

import pandas as pd

from anomalib_cxr.anatomy.assessable import NOT_ASSESSABLE
from anomalib_cxr.csv_tables import restored, write_table
from anomalib_cxr.metrics.checks import check_scores

logger = logging.getLogger(__name__)

COLUMNS = (
    "image",
    "patient_id",
    "label",
    "findings",
    "raw_score",
    "score",
    "p_value",
    "decision",
    "split_hash",
)
"""Columns that every file has, in order."""

PICTURE = "picture"
"""A column that files of version 0.1 lack."""
ASSESSABLE = "assessable"
"""Whether a film is of the kind that the model was trained on; a column that older files lack."""
BECAUSE = "not_assessable_because"
"""Why it is not; a column that older files lack."""

_LATER = (PICTURE, ASSESSABLE, BECAUSE)
_LABELS = {"normal", "abnormal", ""}
_KNOWN = {"label": _LABELS, "decision": _LABELS | {NOT_ASSESSABLE}, ASSESSABLE: {"yes", "no", ""}}
_NAMED = 3


class PredictionsError(ValueError):
    """A file of predictions cannot be used; the message says which and why."""


def write_predictions(path: str | Path, predictions: pd.DataFrame) -> None:
    """Write predictions, atomically: a killed run leaves the old file or none, never half a file.

    Args:
        path: File to write.
        predictions: Rows with :data:`COLUMNS`, and where there is such a thing :data:`PICTURE`, :data:`ASSESSABLE` and
            :data:`BECAUSE`; see :func:`read_predictions` for what they hold.

    Raises:
        PredictionsError: If the table is not what :func:`read_predictions` would take.
    """
    path = Path(path)
    _check(predictions, str(path))
    write_table(path, _with_later(predictions))


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read predictions, and refuse a file that is not what it should be.

    Args:
        path: File that a test, predict or validation run wrote.

    Returns:
        One row an image:

        - ``image``: path below the data set's root with forward slashes, or a full path;
        - ``patient_id``: "" where unknown;
        - ``label``: "normal", "abnormal", or "" where unknown;
        - ``findings``: joined by "|", or "";
        - ``raw_score``: float, what the model gave before any post-processing; higher is more abnormal;
        - ``score``: after it; NaN for a model without post-processor;
        - ``p_value``: conformal, against normal validation images; NaN where there were none;
        - ``decision``: "normal", "abnormal", "not assessable", or "" for a model without post-processor;
        - ``split_hash``: SHA-256 of the split, or "";
        - ``picture``: path below the file's folder with forward slashes, or a full path; "" where there is none;
        - ``assessable``: "yes", "no", or "" where films were not assessed;
        - ``not_assessable_because``: reasons joined by "; ", or "".

    Raises:
        PredictionsError: If the file is missing, empty or no such table, names an image twice, or holds a score that
            is not finite.
    """
    path = Path(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8", encoding_errors="surrogateescape")
    except FileNotFoundError as error:
        msg = f"There are no predictions at {path}: a test run writes them beside its pictures."
        raise PredictionsError(msg) from error
    except (OSError, ValueError, pd.errors.ParserError) as error:
        msg = f"{path} is no table of predictions: {error}"
        raise PredictionsError(msg) from error
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent:
        msg = f"{path} lacks the columns {absent}, it has {list(table.columns)}."
        raise PredictionsError(msg)
    table = table.apply(lambda column: column.map(restored))
    for column in ("raw_score", "score", "p_value"):
        try:
            # By Python's float, which is exact to the last digit; pandas' own parser is only since version 3.
            table[column] = table[column].replace("", "nan").map(float).astype(float)
        except (ValueError, TypeError) as error:
            msg = f"{path}: the column {column} holds what is no number: {error}"
            raise PredictionsError(msg) from error
    _check(table, str(path))
    return _with_later(table)


def check_same_images(a: pd.DataFrame, b: pd.DataFrame, name_a: str, name_b: str) -> pd.DataFrame:
    """Put two tables of predictions of the same images into the same order, or refuse.

    Args:
        a: Predictions of one model.
        b: Predictions of the other.
        name_a: Where the first are from, for messages.
        name_b: Where the second are from.

    Returns:
        ``b`` in the order of ``a``.

    Raises:
        PredictionsError: If they are not of the same images, or disagree about a label; the message names some.
    """
    only_a, only_b = (sorted(set(x["image"]) - set(y["image"])) for x, y in ((a, b), (b, a)))
    if only_a or only_b:
        parts = [
            f"{len(only)} only in {name}, such as {', '.join(only[:_NAMED])}"
            for only, name in ((only_a, name_a), (only_b, name_b))
            if only
        ]
        msg = f"The two files are predictions of different images: {'; '.join(parts)}."
        raise PredictionsError(msg)
    ordered = b.set_index("image").loc[a["image"]].reset_index()
    other = ordered["label"].to_numpy() != a["label"].to_numpy()
    if other.any():
        first = a["image"].to_numpy()[other][0]
        msg = f"{name_a} and {name_b} disagree about the label of {int(other.sum())} images, the first is {first}."
        raise PredictionsError(msg)
    return ordered


def check_apart(validation: pd.DataFrame, test: pd.DataFrame) -> None:
    """Refuse validation images that are test images too: what is chosen on them is tuned on the test.

    Args:
        validation: Predictions of the validation images.
        test: Predictions of the test images.

    Raises:
        PredictionsError: If they share images; the message names one.
    """
    both = set(validation["image"]) & set(test["image"])
    if both:
        msg = f"{len(both)} of the validation images are test images too, the first is {min(both)}."
        raise PredictionsError(msg)


def _check(table: pd.DataFrame, where: str) -> None:
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent:
        msg = f"{where} lacks the columns {absent}, it has {list(table.columns)}."
        raise PredictionsError(msg)
    if not len(table):
        msg = f"{where} holds no image."
        raise PredictionsError(msg)
    repeated = table["image"][table["image"].duplicated()]
    if len(repeated):
        msg = f"{where}: {len(repeated)} images are listed more than once, the first is {repeated.iloc[0]}."
        raise PredictionsError(msg)
    for column, known in _KNOWN.items():
        odd = sorted(set(table.get(column, ())) - known)
        if odd:
            words = f"{', '.join(sorted(known - {''}))} or nothing"
            msg = f"{where}: unknown values {odd[:_NAMED]} in column {column}, use {words}."
            raise PredictionsError(msg)
    try:
        check_scores(table["raw_score"], table["image"].tolist(), "raw scores")
    except ValueError as error:
        msg = f"{where}: {error}"
        raise PredictionsError(msg) from error


def _with_later(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a file, in order."""
    columns = table[list(COLUMNS)]
    return columns.assign(**{name: table.get(name, "") for name in _LATER})
