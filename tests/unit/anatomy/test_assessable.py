"""Limits of films that may be judged: against plain linear algebra, counts, and faults drawn by other means."""

import json
import math
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from faulty_films import cropped, lateral, photograph, turned
from limits_by_hand import too_bright_above

from anomalib_cxr.anatomy.assessable import (
    _AS_A_WHOLE,
    _SINGLE,
    FEWEST,
    RATE,
    Assessment,
    FilmLimits,
    FilmLimitsError,
    _limit_of,
    _teach,
)
from anomalib_cxr.anatomy.film_look import FAULTS, NUMBERS, FilmLook, TrainingLook, look_at, look_at_training_film
from anomalib_cxr.data.phantom import render_phantom
from anomalib_cxr.metrics.conformal import conformal_p_values

SIDE, TRAINING = 64, 50


class Trained(NamedTuple):
    films: list[TrainingLook]
    looks: list[FilmLook]
    limits: FilmLimits


def film(number: int) -> np.ndarray:
    return render_phantom(SIDE, seed=5, index=number).image


@pytest.fixture(scope="module")
def trained() -> Trained:
    films = [look_at_training_film(film(number), number) for number in range(TRAINING)]
    limits = FilmLimits.fix(films)
    assert limits is not None
    return Trained(films, [one.plain for one in films], limits)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda one: 1 - one, "grey values inverted"),
        (lambda one: turned(one, 180), "upside down"),
        (lambda one: turned(one, 90), "turned a quarter to the left"),
        (lambda one: turned(one, 270), "turned a quarter to the right"),
        (lambda one: turned(one, 25), "turned to the left"),
        (lambda one: turned(one, -25), "turned to the right"),
        (lambda one: cropped(one, top=0.3), "cut off at the top"),
        (lambda one: cropped(one, bottom=0.3), "cut off at the bottom"),
        (lambda one: cropped(one, left=0.3), "cut off at the left"),
        (lambda one: cropped(one, right=0.3), "cut off at the right"),
        (lambda one: cropped(one, 0.2, 0.2, 0.2, 0.2), "cut off all around"),
    ],
    ids=list(FAULTS),
)
def test_a_fault_is_found_and_called_by_its_name(trained: Trained, spoil: Any, reason: str) -> None:
    for number in (1000, 1001):
        found = trained.limits.assess(spoil(film(number)))
        assert not found.assessable
        assert found.because.split("; ")[0] == reason


def test_what_is_no_frontal_film_is_found(trained: Trained) -> None:
    for other in (*map(lateral, range(4)), *map(photograph, ("camera", "moon", "coins", "grass")), np.zeros((64, 64))):
        found = trained.limits.assess(other.astype(np.float32))
        assert not found.assessable
        assert found.because


def test_normal_films_are_seldom_flagged(trained: Trained) -> None:
    flagged = sum(trained.limits.strangeness(look).max() > trained.limits.limit for look in trained.looks)
    assert flagged <= RATE * TRAINING
    new = [trained.limits.assess(film(number)) for number in range(2000, 2016)]
    assert sum(not one.assessable for one in new) <= 2  # more have a chance of 0.4 %
    assert {one.because for one in new if one.assessable} == {""}


def test_sick_lungs_are_no_fault(trained: Trained) -> None:
    """Lungs that a phantom's own mask has made opaque, each alone and both."""
    flagged = 0
    for number in range(5000, 5012):
        drawn = render_phantom(SIDE, seed=5, index=number)
        sick = drawn.lungs & ((np.arange(SIDE) < SIDE // 2) == (number % 3 == 0) if number % 3 < 2 else True)
        bright = drawn.image[~drawn.lungs][None].mean()
        opaque = np.where(sick, 0.4 * drawn.image + 0.6 * np.maximum(bright, drawn.image), drawn.image)
        assert np.abs(opaque - drawn.image).max() > 0.1
        flagged += not trained.limits.assess(opaque.astype(np.float32)).assessable
    assert flagged <= 2


def test_measures_are_those_of_plain_linear_algebra(trained: Trained) -> None:
    """Of a covariance written out: kept components as they are, the mean of the others in every other direction."""
    pictures = np.array([look.picture for look in trained.looks], float)
    faulty = np.array([[one.faults[name] for name in FAULTS] for one in trained.films], float)
    kept = 7
    values, vectors = np.linalg.eigh(np.cov(pictures.T))
    values[:-kept] = values[:-kept].mean()
    covariance = (vectors * values) @ vectors.T
    numbers = np.array([[look.values[name] for name in NUMBERS] for look in trained.looks])
    taught = _teach(pictures, faulty, numbers, kept)
    shrunk = np.cov(numbers.T)
    shrunk[~np.eye(len(NUMBERS), dtype=bool)] *= 0.9
    for look in (look_at(1 - film(3000)), look_at(film(3001))):
        odd = np.array([look.values[name] for name in NUMBERS]) - numbers.mean(axis=0)
        assert taught.oddness(look.values) == pytest.approx(math.sqrt(odd @ np.linalg.solve(shrunk, odd)), rel=1e-6)
        other = look.picture
        away = other - pictures.mean(axis=0)
        assert taught.distance(other) == pytest.approx(math.sqrt(away @ np.linalg.solve(covariance, away)), rel=1e-6)
        means = faulty.mean(axis=0) - pictures.mean(axis=0)
        directions = np.linalg.solve(covariance, means.T).T
        expected = directions @ away / (directions * means).sum(axis=1)
        np.testing.assert_allclose(taught.likeness(other), expected, rtol=1e-6, atol=1e-9)
        distances = [(away - mean) @ np.linalg.solve(covariance, away - mean) for mean in means]
        fault, distance = taught.nearest(other)
        assert (fault, distance) == (int(np.argmin(distances)), pytest.approx(math.sqrt(min(distances)), rel=1e-6))


@pytest.mark.parametrize("count", [49, 50, 99, 100, 149, 400])
def test_the_limit_is_where_a_conformal_p_value_is_at_most_the_rate(count: int) -> None:
    strangest = np.random.default_rng(count).permutation(np.arange(count) / 10.0)
    limit = _limit_of(strangest)
    for strange in np.arange(-1, count + 2) / 10.0 + 0.05:
        p_value = conformal_p_values(strangest, [strange])[0]
        assert (strange > limit) == (p_value <= RATE), (strange, limit, p_value)


def test_few_films_promise_less_and_fewer_nothing(trained: Trained) -> None:
    few = FilmLimits.fix(trained.films[:FEWEST])
    assert few is not None
    assert few.promised_rate == 1 / (FEWEST + 1)
    assert max(few.strangeness(look).max() for look in trained.looks[:FEWEST]) < few.limit
    assert _limit_of(np.arange(48.0)) > 47  # beyond all of them
    assert trained.limits.promised_rate == RATE
    assert FilmLimits.fix(trained.films[: FEWEST - 1]) is None


def test_a_record_says_the_same_to_the_last_digit(trained: Trained) -> None:
    text = json.dumps(trained.limits.record())
    assert len(text) < 100_000
    again = FilmLimits.from_record(json.loads(text))
    assert again.record() == trained.limits.record()
    assert (again.films, again.faults) == (TRAINING, tuple(FAULTS))
    for one in (film(4000), 1 - film(4001), cropped(film(4002), top=0.3)):
        look = look_at(one)
        np.testing.assert_array_equal(again.strangeness(look), trained.limits.strangeness(look))
        assert again.assess(one) == trained.limits.assess(one)
    twice = FilmLimits.fix(trained.films)
    assert twice is not None
    assert twice.record() == trained.limits.record()


def broken(**changes: Any) -> dict[str, Any]:
    return too_bright_above(0.5) | changes


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (broken(format=99), "are of format 99, not 1: train with this version"),
        (broken(limit=math.nan), "not finite"),
        (broken(limit="much"), "damaged"),
        (broken(mean=[0.0] * 255), "numbers are missing"),
        (broken(scales=[[0.0, 1.0]]), "numbers are missing"),
        (broken(components=[[0.0] * 256]), "numbers are missing"),
        ({name: value for name, value in broken().items() if name != "rest"}, "damaged"),
        ([], "damaged"),
        ("text", "damaged"),
    ],
)
def test_damaged_records_are_refused(record: Any, said: str) -> None:
    with pytest.raises(FilmLimitsError, match=said):
        FilmLimits.from_record(record)


def test_reasons_are_joined(trained: Trained) -> None:
    by_hand = FilmLimits.from_record(too_bright_above(0.5))
    assert by_hand.assess(np.full((40, 30), 0.6, np.float32)) == Assessment(False, "too bright")
    assert by_hand.assess(np.full((40, 30), 0.4, np.float32)) == Assessment(True, "")
    record = too_bright_above(0.5)
    record["scales"][0] = [0.0, 1.0]  # the distance
    noise = np.random.default_rng(0).random((40, 30), np.float32)
    whole = "unlike the training films: perhaps lateral or another body part"
    assert FilmLimits.from_record(record).assess(0.5 * noise).because == whole
    assert FilmLimits.from_record(record).assess(0.5 + 0.5 * noise).because == f"{whole}; too bright"
    assert len(trained.limits.assess(np.zeros((64, 64), np.float32)).because.split("; ")) > 1


def test_every_reason_fits_into_a_code_of_dicom() -> None:
    """64 characters (VR LO), and none is what joins them."""
    reasons = [*FAULTS, *(reason for _, _, reason in _SINGLE), _AS_A_WHOLE]
    assert max(map(len, reasons)) <= 64
    assert not [reason for reason in reasons if ";" in reason]


def test_a_look_hardly_depends_on_size_exposure_and_markers() -> None:
    large = render_phantom(256, seed=5, index=7).image
    look, half = look_at(large), look_at(cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA))
    assert np.abs(look.picture - half.picture).max() < 0.02
    assert look.values == pytest.approx(half.values, abs=0.02)
    np.testing.assert_allclose(look_at(0.2 + 0.5 * large).picture, look.picture, atol=1e-3)
    marked = large.copy()
    marked[:16, :20] = 1.0
    assert np.corrcoef(look_at(marked).picture, look.picture)[0, 1] > 0.97
    assert look.picture.shape == (256,)
    assert (look.picture.mean(), look.picture.std()) == pytest.approx((0, 1), abs=1e-5)
    grey = look_at(np.full((2, 2), 0.3))
    assert np.isfinite(grey.picture).all()
    assert all(map(math.isfinite, grey.values.values()))
