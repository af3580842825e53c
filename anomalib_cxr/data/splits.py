"""Patient-grouped, seeded splits of a samples table.

Every draw walks through the patients in the order of a keyed hash of their ids. The order depends on the seed and the
ids alone: not on the order of files or rows, not on a random generator that a library may change. A patient goes to a
part with all images or not at all.

A table here is any frame with the columns ``patient_id`` and ``label`` ("normal" or "abnormal").
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from pandas import DataFrame, Series

NORMAL = "normal"
ABNORMAL = "abnormal"
LABELS = (NORMAL, ABNORMAL)
SPLITS = ("train", "val", "test")


def order_patients(patient_ids: Iterable[str], seed: int) -> list[str]:
    """Order distinct patients by ``blake2b("<seed>:<patient_id>")``.

    Args:
        patient_ids: Patient ids, repeats allowed.
        seed: Key of the order.

    Returns:
        Each patient once, in an order that only ids and seed decide.
    """
    distinct = {str(patient) for patient in patient_ids}

    def key(patient: str) -> tuple[bytes, str]:
        # Where the image is its own patient, its name may be no UTF-8.
        return blake2b(f"{seed}:{patient}".encode("utf-8", "surrogatepass")).digest(), patient

    return sorted(distinct, key=key)


def draw_patients(table: DataFrame, counts: Mapping[str, int], seed: int) -> set[str]:
    """Draw patients until their images number exactly ``counts`` per label, or as near below as patients allow.

    Patients are taken in hash order. One whose images would overshoot any label's count is passed over, so a patient
    with both labels is taken only where both counts still have room, and one with a label that ``counts`` does not
    name is never taken.

    Args:
        table: Samples with ``patient_id`` and ``label``.
        counts: Images wanted per label, for instance ``{"normal": 100, "abnormal": 100}``.
        seed: Key of the patient order.

    Returns:
        Ids of the patients drawn. Their images may be fewer than asked for: the caller says so.
    """
    images = _images_per_patient(table)
    room = dict(counts)
    drawn: set[str] = set()
    for patient in order_patients(images, seed):
        if not any(room.values()):
            break
        if all(number <= room.get(label, 0) for label, number in images[patient].items()):
            drawn.add(patient)
            for label, number in images[patient].items():
                room[label] -= number
    return drawn


def shrink_counts(table: DataFrame, wanted: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Shrink the counts of a preset in proportion where a table has too few images, as part of a data set has.

    Args:
        table: Samples with ``label``.
        wanted: Images per split and label.

    Returns:
        The same counts where the table has enough images of a label; else each count of that label times what there is
        over what is wanted, rounded down, at least one.
    """
    available = Counter(table["label"])
    shrunk: dict[str, dict[str, int]] = {split: {} for split in wanted}
    for label in LABELS:
        total = sum(counts.get(label, 0) for counts in wanted.values())
        for split, counts in wanted.items():
            if label in counts:
                enough = available[label] >= total
                shrunk[split][label] = counts[label] if enough else max(1, counts[label] * available[label] // total)
    return shrunk


def split_by_counts(table: DataFrame, wanted: Mapping[str, Mapping[str, int]], seed: int) -> Series:
    """Draw splits of given numbers of images one after the other, each from the patients that are left.

    Args:
        table: Samples with ``patient_id`` and ``label``, any index.
        wanted: Images per split and label, in the order of the draws.
        seed: Key of the patient order.

    Returns:
        Split of each row, "" for those that no draw took, with the index of ``table``.
    """
    split = Series("", index=table.index)
    for part, counts in wanted.items():
        left = table[split == ""]
        split[left.index[left["patient_id"].astype(str).isin(draw_patients(left, counts, seed))]] = part
    return split


def deal_patients(table: DataFrame, shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Deal all patients to parts so that the parts' images approach the given shares, whatever the label.

    Patients come in hash order, and each goes to the part that is furthest below its share.

    Args:
        table: Samples with ``patient_id``.
        shares: Positive weights of the parts; they need not sum to one. Parts of weight zero get nothing.
        seed: Key of the patient order.

    Returns:
        Part of each patient.

    Raises:
        ValueError: If a share is negative or all are zero.
    """
    total = sum(shares.values())
    if total <= 0 or min(shares.values()) < 0:
        msg = f"shares must be non-negative with a positive sum, got {dict(shares)}"
        raise ValueError(msg)
    sizes = Counter(table["patient_id"].astype(str))
    missing = {part: share / total * len(table) for part, share in shares.items() if share > 0}
    dealt: dict[str, str] = {}
    for patient in order_patients(sizes, seed):
        part = max(missing, key=lambda name: missing[name])
        missing[part] -= sizes[patient]
        dealt[patient] = part
    return dealt


def split_by_patient(table: DataFrame, seed: int, val: float = 0.15, test: float = 0.15) -> Series:
    """Split a table for one-class learning: train on normals only, validate and test on both labels.

    Normal-only patients are dealt to train, val and test by ``1 - val - test``, ``val`` and ``test``. Abnormal images
    have no place in training, so every patient with at least one abnormal image goes to val or test, in the
    proportion ``val`` to ``test``, together with all normal images that patient has.

    Args:
        table: Samples with ``patient_id`` and ``label``, any index.
        seed: Key of the patient order.
        val: Share of the normal patients' images for validation, in [0, 1).
        test: Share for the test, in [0, 1).

    Returns:
        "train", "val" or "test" for each row, with the index of ``table``.

    Raises:
        ValueError: If the shares leave nothing for training or nothing for evaluation.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and 0 < val + test < 1):
        msg = f"val and test are shares with 0 < val + test < 1, got val={val} and test={test}"
        raise ValueError(msg)
    diseased = patients_with_abnormal(table)
    in_diseased = table["patient_id"].astype(str).isin(diseased)
    dealt = deal_patients(table[~in_diseased], {"train": 1 - val - test, "val": val, "test": test}, seed)
    dealt |= deal_patients(table[in_diseased], {"val": val, "test": test}, seed)
    return table["patient_id"].astype(str).map(dealt)


def split_officially(table: DataFrame, part: Series, seed: int, val: float = 0.15) -> Series:
    """Keep an official test set, and take validation from the official training set, which has none of its own.

    Training patients with and without abnormal images are dealt separately, so that validation has its share of both.
    Abnormal training images are not used.

    Args:
        table: Samples with ``patient_id`` and ``label``, any index.
        part: "train", "test" or "" (not used) for each row.
        seed: Key of the patient order.
        val: Share of the training patients' images for validation, in (0, 1).

    Returns:
        "train", "val", "test" or "" (not used) for each row, with the index of ``table``.

    Raises:
        ValueError: If ``val`` is not in (0, 1).
    """
    if not 0 < val < 1:
        msg = f"an official training set needs 0 < val_ratio < 1 to take validation from it, got {val}"
        raise ValueError(msg)
    patients = table["patient_id"].astype(str)
    in_train = part == "train"
    diseased = patients.isin(patients_with_abnormal(table[in_train]))
    dealt: dict[str, str] = {}
    for group in (in_train & ~diseased, in_train & diseased):
        dealt |= deal_patients(table[group], {"train": 1 - val, "val": val}, seed)
    split = part.mask(in_train, patients.map(dealt))
    return split.mask((split == "train") & (table["label"] == ABNORMAL), "")


def assign_folds(table: DataFrame, num_folds: int, seed: int) -> Series:
    """Assign each patient to one of ``num_folds`` folds of nearly equal size, stratified by label.

    Patients with an abnormal image and patients without are dealt separately, so every fold has its part of both.

    Args:
        table: Samples with ``patient_id`` and ``label``, any index.
        num_folds: Number of folds, at least 2.
        seed: Key of the patient order.

    Returns:
        Fold number in [0, num_folds) for each row, with the index of ``table``.

    Raises:
        ValueError: If ``num_folds`` is below 2.
    """
    if num_folds < 2:
        msg = f"num_folds must be at least 2, got {num_folds}"
        raise ValueError(msg)
    shares = {str(fold): 1.0 for fold in range(num_folds)}
    in_diseased = table["patient_id"].astype(str).isin(patients_with_abnormal(table))
    dealt = deal_patients(table[~in_diseased], shares, seed) | deal_patients(table[in_diseased], shares, seed)
    return table["patient_id"].astype(str).map(dealt).astype(int)


def split_by_fold(table: DataFrame, fold: int, num_folds: int, seed: int) -> Series:
    """Split a table for one round of one-class cross-validation: every image is tested in exactly one round.

    Fold ``fold`` is the test, the next one (round the corner) the validation, and training takes the patients without
    abnormal images of all others. Patients with abnormal images of the other folds have no place in this round.

    Args:
        table: Samples with ``patient_id`` and ``label``, any index.
        fold: Round, in [0, num_folds).
        num_folds: Number of folds, at least 3.
        seed: Key of the patient order.

    Returns:
        "train", "val", "test" or "" (not used in this round) for each row, with the index of ``table``.

    Raises:
        ValueError: If ``num_folds`` is below 3 or ``fold`` is not in [0, num_folds).
    """
    if num_folds < 3 or not 0 <= fold < num_folds:
        msg = f"cross-validation needs num_folds >= 3 and 0 <= fold < num_folds, got fold {fold} of {num_folds}"
        raise ValueError(msg)
    folds = assign_folds(table, num_folds, seed)
    split = Series("train", index=table.index)
    split[table["patient_id"].astype(str).isin(patients_with_abnormal(table))] = ""
    split[folds == (fold + 1) % num_folds] = "val"
    split[folds == fold] = "test"
    return split


def take_fraction(table: DataFrame, seed: int, fraction: float = 1.0, limit: int | None = None) -> Series:
    """Take part of the patients of every split, of those with and of those without abnormal images alike.

    Patients come in hash order, so a smaller fraction is a subset of a larger one.

    Args:
        table: Samples with ``patient_id``, ``label`` and ``split``, any index.
        seed: Key of the patient order.
        fraction: Part of the patients of each group, in (0, 1], rounded, at least one.
        limit: Most patients in all, or None.

    Returns:
        Whether each row is taken, with the index of ``table``.

    Raises:
        ValueError: If ``fraction`` is not in (0, 1] or ``limit`` cannot give one patient to each group.
    """
    if not 0 < fraction <= 1:
        msg = f"fraction must be in (0, 1], got {fraction}"
        raise ValueError(msg)
    patients = table["patient_id"].astype(str)
    diseased = patients_with_abnormal(table)
    groups = [order_patients(group, seed) for _, group in patients.groupby([table["split"], patients.isin(diseased)])]
    total = sum(map(len, groups))
    if limit is not None:
        if limit < len(groups):
            msg = f"limit {limit} is too low: the splits with and without abnormal patients are {len(groups)} groups"
            raise ValueError(msg)
        fraction = min(fraction, limit / max(total, 1))
    takes = [max(1, int(fraction * len(group) + 0.5)) for group in groups]
    while limit is not None and sum(takes) > limit:
        takes[takes.index(max(takes))] -= 1
    taken = {patient for group, take in zip(groups, takes, strict=True) for patient in group[:take]}
    return patients.isin(taken)


def patients_with_abnormal(table: DataFrame) -> set[str]:
    """Ids of the patients who have at least one abnormal image.

    Args:
        table: Samples with ``patient_id`` and ``label``.

    Returns:
        Set of patient ids.
    """
    return set(table.loc[table["label"] == ABNORMAL, "patient_id"].astype(str))


def _images_per_patient(table: DataFrame) -> dict[str, Counter[str]]:
    """Count each patient's images by label."""
    images: dict[str, Counter[str]] = {}
    for patient, label in zip(table["patient_id"].astype(str), table["label"], strict=True):
        images.setdefault(patient, Counter())[label] += 1
    return images
