"""Shares of films called not assessable: real normals, films of another hospital, and faults drawn into real films.

    pytest -m benchmark -s tests/benchmarks/test_films_assessed.py

Limits are fixed on 400 normal training films of ZhangLab as a detector of 256² sees them. Patients are shuffled with
seed 0; the films held out are of other patients than those. Needs ZhangLab and Montgomery below ``$CXR_SHARED/data``.
"""

import csv
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from faulty_films import PHOTOGRAPHS, cropped, lateral, photograph, turned

from anomalib_cxr.anatomy.assessable import FilmLimits
from anomalib_cxr.deploy.resize import antialiased_resize
from anomalib_cxr.imaging import read_radiograph

pytestmark = pytest.mark.benchmark

Film = npt.NDArray[np.float32]

TRAINING, UNUSED, HELD_OUT, SPOILT = 400, 300, 300, 100

FAULTS: dict[str, Sequence[Callable[[Film], Film]]] = {
    "grey values inverted": [lambda film: 1 - film],
    "turned by 180°": [lambda film: turned(film, 180)],
    "turned by 90° to either side": [lambda film, to=to: turned(film, 90 * to) for to in (1, 3)],
    "turned by 30° to either side": [lambda film, to=to: turned(film, 30 * to) for to in (1, -1)],
    "turned by 15° to either side": [lambda film, to=to: turned(film, 15 * to) for to in (1, -1)],
    **{
        f"{share:.0%} cut off at the {side}": [lambda film, side=side, share=share: cropped(film, **{side: share})]
        for share in (0.35, 0.2)
        for side in ("top", "bottom", "left", "right")
    },
    "15 % cut off at each border": [lambda film: cropped(film, 0.15, 0.15, 0.15, 0.15)],
    "one half of the chest": [lambda film: cropped(film, left=0.5), lambda film: cropped(film, right=0.5)],
}  # fmt: skip


def seen(film: Film) -> Film:
    """As a detector of 256² sees it."""
    return antialiased_resize(film, (256, 256))


def by_patients(folder: Path) -> list[Path]:
    """Films of a folder, its patients shuffled."""
    of: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        found = re.match(r"(?:NORMAL2-)?IM-\d+", path.name)
        of.setdefault(found[0] if found else path.name, []).append(path)
    patients = sorted(of)
    np.random.default_rng(0).shuffle(patients)
    return [path for patient in patients for path in of[patient]]


def shown(limits: FilmLimits, name: str, these: Sequence[Film]) -> float:
    """Print a row: films, share not assessable, the first reason that comes most often, processor time a film."""
    start = time.process_time()
    found = [limits.assess(seen(film)) for film in these]
    cost = (time.process_time() - start) / len(these) * 1e3
    share = sum(not one.assessable for one in found) / len(found)
    reasons = [one.because.split("; ")[0] for one in found if not one.assessable]
    often = max(set(reasons), key=lambda reason: (reasons.count(reason), reason)) if reasons else ""
    print(f"| {name} | {len(found)} | {share:.1%} | {often} | {cost:.0f} ms", flush=True)
    return share


def montgomery(shared: Path, abnormal: str) -> list[Film]:
    """Films of Montgomery, "0" normal or "1" tuberculosis, in the order of its table."""
    folder = shared / "data" / "montgomery"
    with (folder / "labels.csv").open() as file:
        names = [one["image"] for one in csv.DictReader(file) if one["abnormal"] == abnormal]
    return [read_radiograph(folder / "images" / name) for name in names]


def test_shares_of_films_not_assessable(shared: Path) -> None:
    zhanglab = shared / "data" / "zhanglab"
    films = by_patients(zhanglab / "train" / "NORMAL")
    training = [seen(read_radiograph(path)) for path in films[:TRAINING]]
    start = time.process_time()
    limits = FilmLimits.from_films(training)
    assert limits is not None
    print(f"\n{(time.process_time() - start) / TRAINING * 1e3:.0f} ms a training film")

    def row(name: str, these: Sequence[Film]) -> float:
        return shown(limits, name, these)

    held_out = [read_radiograph(path) for path in films[TRAINING + UNUSED : TRAINING + UNUSED + HELD_OUT]]
    assert row("training normals", training) <= 0.02
    row("held-out normals of the training folder", held_out)
    row("pneumonia of the training folder", [read_radiograph(p) for p in by_patients(zhanglab / "train" / "PNEUMONIA")])
    for label in ("NORMAL", "PNEUMONIA"):
        row(f"test folder, {label}", [read_radiograph(path) for path in sorted((zhanglab / "test" / label).iterdir())])
    row("Montgomery (adults), normal", montgomery(shared, "0"))
    row("Montgomery (adults), tuberculosis", montgomery(shared, "1"))
    row("two DICOM films", [read_radiograph(path) for path in sorted((shared / "data" / "dicom").iterdir())])
    for name, spoil in FAULTS.items():
        row(name, [one(film) for film in held_out[:SPOILT] for one in spoil])
    row("lateral views (drawn)", [lateral(number) for number in range(40)])
    row("photographs", [photograph(name) for name in PHOTOGRAPHS])


def test_shares_after_commissioning(shared: Path) -> None:
    """Limits fixed anew on 40 normal films of the other hospital."""
    films = montgomery(shared, "0")
    normal = [films[place] for place in np.random.default_rng(0).permutation(len(films))]
    limits = FilmLimits.from_films(seen(film) for film in normal[:40])
    assert limits is not None
    print()
    shown(limits, "its other normals", normal[40:])
    shown(limits, "its tuberculosis", montgomery(shared, "1"))
    for name, spoil in FAULTS.items():
        shown(limits, name, [one(film) for film in normal[40:] for one in spoil])
    shown(limits, "lateral views (drawn)", [lateral(number) for number in range(40)])
    shown(limits, "photographs", [photograph(name) for name in PHOTOGRAPHS])
