"""Notice that scores have changed, at any time and with a stated chance of a false alarm."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from anomalib_cxr.metrics.checks import check_scores


class DriftAlarm(NamedTuple):
    """What a stream of scores came to.

    Attributes:
        martingale: (m,) the evidence after each score, log10.
        alarm_at: First score, counted from 0, at which it reached 1 / false_alarm; None if it never did.
    """

    martingale: npt.NDArray[np.float64]
    alarm_at: int | None


def drift_alarm(
    reference: npt.ArrayLike, stream: npt.ArrayLike, false_alarm: float = 0.01, jump: float = 0.01, seed: int = 0
) -> DriftAlarm:
    """Watch a stream of scores for a change, after each score.

    Each score gets a smoothed conformal p-value among the reference and all earlier scores. As long as the stream is
    exchangeable with the reference these are independent and uniform (Vovk, Gammerman and Shafer 2005, chapter 8), and
    the Simple Jumper that bets on small, large or neither (Vovk et al., "Retrain or not retrain", COPA 2021) is a
    martingale that starts at 1: by Ville's inequality the chance that it *ever* reaches 1 / false_alarm is at most
    ``false_alarm``, however long one watches.

    Args:
        reference: (n,) scores of the time before, of the same mix of films as the stream's.
        stream: (m,) later scores, in the order of time.
        false_alarm: Bound on the chance of any false alarm, in (0, 1).
        jump: Rate at which the bets change between small, large and neither, in (0, 1].
        seed: Of the random tie-breaking that makes the p-values uniform.

    Returns:
        Evidence and alarm.

    Raises:
        ValueError: If there are no reference scores, a score is not finite, or a rate is out of range.
    """
    for name, value, closed in (("false_alarm", false_alarm, False), ("jump", jump, True)):
        if not (0 < value < 1 or (closed and value == 1)):
            msg = f"{name} lies in (0, 1{']' if closed else ')'}, {value} does not."
            raise ValueError(msg)
    before = check_scores(reference, what="reference scores")
    scores = np.asarray(stream, float)
    if len(scores) == 0:
        return DriftAlarm(np.zeros(0), None)
    check_scores(scores)
    p_values = online_p_values(before, scores, seed)
    bets = np.array([-1.0, 0.0, 1.0])
    capital, total = np.full(3, 1 / 3), 0.0
    evidence = np.empty(len(scores))
    for number, p in enumerate(p_values):
        capital = (1 - jump) * capital + jump * capital.sum() / 3
        capital *= 1 + bets * (p - 0.5)
        growth = capital.sum()
        total += np.log10(growth)
        capital /= growth  # the evidence of years would overflow
        evidence[number] = total
    reached = np.flatnonzero(evidence >= -np.log10(false_alarm))
    return DriftAlarm(evidence, int(reached[0]) if len(reached) else None)


def online_p_values(reference: npt.ArrayLike, stream: npt.ArrayLike, seed: int = 0) -> npt.NDArray[np.float64]:
    """Smoothed conformal p-value of each score among the reference and all earlier ones.

    Args:
        reference: (n,) scores.
        stream: (m,) scores in the order of time.
        seed: Of the tie-breaking.

    Returns:
        (m,) ``(#{higher} + u · #{equal, itself among them}) / (n + i + 1)``, u uniform in [0, 1).
    """
    pool = np.sort(np.asarray(reference, float))
    breaks = np.random.default_rng(seed).random(len(np.asarray(stream)))
    found = np.empty(len(breaks))
    for number, (score, u) in enumerate(zip(np.asarray(stream, float), breaks, strict=True)):
        low, high = np.searchsorted(pool, score, "left"), np.searchsorted(pool, score, "right")
        found[number] = (len(pool) - high + u * (high - low + 1)) / (len(pool) + 1)
        pool = np.insert(pool, high, score)
    return found
