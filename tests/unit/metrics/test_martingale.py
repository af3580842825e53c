"""The alarm's bound under no change, its speed under change, and its arithmetic by a plain loop."""

import numpy as np
import pytest

from anomalib_cxr.metrics.martingale import drift_alarm, online_p_values


def test_p_values_by_the_definition() -> None:
    rng = np.random.default_rng(0)
    reference, stream = rng.integers(0, 5, 12).astype(float), rng.integers(0, 5, 30).astype(float)
    found = online_p_values(reference, stream, seed=3)
    breaks = np.random.default_rng(3).random(30)
    for number, score in enumerate(stream):
        pool = [*reference, *stream[: number + 1]]
        higher, equal = sum(each > score for each in pool), sum(each == score for each in pool)
        assert found[number] == pytest.approx((higher + breaks[number] * equal) / len(pool))


def test_evidence_by_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    reference, stream = rng.random(20), rng.random(40) + 0.3
    capitals = dict.fromkeys((-1, 0, 1), 1 / 3)
    for number, p in enumerate(online_p_values(reference, stream)):
        whole = sum(capitals.values())
        capitals = {bet: (0.99 * c + 0.01 * whole / 3) * (1 + bet * (p - 0.5)) for bet, c in capitals.items()}
        assert drift_alarm(reference, stream).martingale[number] == pytest.approx(np.log10(sum(capitals.values())))


@pytest.mark.parametrize("bound", [0.2, 0.05])
def test_false_alarms_stay_below_their_bound_however_long_one_watches(bound: float) -> None:
    rng = np.random.default_rng(2)
    runs = 300
    alarms = sum(
        drift_alarm(rng.normal(size=30), rng.normal(size=300), bound, seed=run).alarm_at is not None
        for run in range(runs)
    )
    assert alarms / runs <= bound + 3 * np.sqrt(bound * (1 - bound) / runs)


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_a_change_of_one_deviation_is_noticed_within_a_hundred_films(shift: float) -> None:
    rng = np.random.default_rng(3)
    late = []
    for run in range(20):
        stream = np.concatenate([rng.normal(size=50), rng.normal(shift, 1, 150)])
        late.append(drift_alarm(rng.normal(size=100), stream, 0.01, seed=run).alarm_at)
    assert sum(each is not None and each >= 50 for each in late) >= 18
    assert np.median([each for each in late if each is not None]) < 150


def test_what_cannot_be_watched() -> None:
    assert drift_alarm([1.0], []).alarm_at is None
    with pytest.raises(ValueError, match="false_alarm lies in"):
        drift_alarm([1.0], [1.0], false_alarm=1.0)
    with pytest.raises(ValueError, match="jump lies in"):
        drift_alarm([1.0], [1.0], jump=0.0)
    with pytest.raises(ValueError, match="reference scores must be"):
        drift_alarm([], [1.0])
