"""How the scores of a model are distributed here, beside its commissioning films, and whether they have drifted."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from anomalib_cxr.metrics.martingale import drift_alarm
from anomalib_cxr.node.journal import Journal
from anomalib_cxr.node.shelf import LoadedModel

BINS = 20
#: Latest films that the drift alarm looks at: each is compared with all before it.
_LATEST = 5000


class ScoresSeen(NamedTuple):
    """Distribution and drift of one model's scores.

    Attributes:
        films: Films that the model has scored.
        here: (BINS,) share of the films in each twentieth of [0, 1].
        reference: (BINS,) the same of the reference; None without one.
        references: Films of the reference.
        evidence: Of a change, log10, now; None without a reference or films.
        alarm: Whether it ever reached the bound: scores have changed.
    """

    films: int
    here: npt.NDArray[np.float64]
    reference: npt.NDArray[np.float64] | None
    references: int
    evidence: float | None
    alarm: bool


class Watch:
    """Looks at the scores of models, and remembers what it saw until there is more.

    Args:
        journal: Journal of the node.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._seen: dict[str, ScoresSeen] = {}

    def __call__(self, model: LoadedModel) -> ScoresSeen:
        """Look at the scores of a model, in the order in which the films came."""
        (films,) = self._journal.query("SELECT COUNT(*) FROM scores WHERE model_sha256 = ?", model.sha256)[0]
        known = self._seen.get(model.sha256)
        if known is None or known.films != films:
            known = self._seen[model.sha256] = self._look(model, films)
        return known

    def _look(self, model: LoadedModel, films: int) -> ScoresSeen:
        latest = self._journal.query(
            "SELECT score FROM scores WHERE model_sha256 = ? ORDER BY film DESC LIMIT ?", model.sha256, _LATEST
        )
        scores = np.array([row[0] for row in reversed(latest)])
        reference = np.asarray(model.reference)
        if not len(reference) or not len(scores):
            shares = _shares(reference) if len(reference) else None
            return ScoresSeen(films, _shares(scores), shares, len(reference), None, False)
        found = drift_alarm(reference, scores, model.configuration.false_alarm)
        evidence = float(found.martingale[-1])
        return ScoresSeen(
            films, _shares(scores), _shares(reference), len(reference), evidence, found.alarm_at is not None
        )


def _shares(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    counts, _ = np.histogram(np.clip(scores, 0, 1), BINS, (0, 1))
    return counts / max(1, len(scores))
