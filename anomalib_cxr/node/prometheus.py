"""The node's numbers in Prometheus' text form."""

from collections.abc import Iterable

from anomalib_cxr.node.journal import Journal
from anomalib_cxr.node.scores_seen import Watch
from anomalib_cxr.node.shelf import Shelf
from anomalib_cxr.node.stopwatch import Stopwatch

_PREFIX = "anomalib_cxr_node"


def metrics(journal: Journal, shelf: Shelf, watch: Watch, answers: Stopwatch) -> str:
    """Write the numbers.

    Args:
        journal: Journal of the node.
        shelf: Its models.
        watch: Looks at their scores.
        answers: How long answers to C-STORE took.
    """
    lines: list[str] = []

    def family(name: str, kind: str, told: str, samples: Iterable[tuple[dict[str, str], float]], end: str = "") -> None:
        lines.extend([f"# HELP {_PREFIX}_{name} {told}", f"# TYPE {_PREFIX}_{name} {kind}"] if not end else [])
        lines.extend(f"{_PREFIX}_{name}{end}{_labels(labels)} {value:g}" for labels, value in samples)

    states = [({"state": str(state)}, count) for state, count in journal.counts().items()]
    family("films", "gauge", "Films of the journal by state.", states)
    unfit = journal.not_assessable()
    family("not_assessable", "counter", "Films that a model called not assessable.", [({}, unfit)])
    waiting = [({"for": name}, count) for name, count in journal.waiting().items()]
    family("waiting", "gauge", "Films to score, and objects to send by destination.", waiting)
    family("models_faulty", "gauge", "1 if the last exchange of models failed.", [({}, shelf.problem is not None)])
    seen = {model.name: watch(model) for model in shelf.models}
    family("scored", "counter", "Films that a model has scored.", [({"model": k}, v.films) for k, v in seen.items()])
    family("drift_alarm", "gauge", "1 if the scores of a model have changed.",
           [({"model": name}, one.alarm) for name, one in seen.items()])  # fmt: skip
    family("drift_evidence_log10", "gauge", "Evidence of a change, log10.",
           [({"model": name}, one.evidence) for name, one in seen.items() if one.evidence is not None])  # fmt: skip
    counts, count, total = answers.read()
    buckets = [({"le": f"{bound:g}"}, number) for bound, number in zip(answers.bounds, counts, strict=True)]
    name = "store_answer_seconds"
    lines.extend([f"# HELP {_PREFIX}_{name} From a whole film to its answer.", f"# TYPE {_PREFIX}_{name} histogram"])
    family(name, "", "", [*buckets, ({"le": "+Inf"}, count)], "_bucket")
    family(name, "", "", [({}, total)], "_sum")
    family(name, "", "", [({}, count)], "_count")
    return "\n".join([*lines, ""])


def _labels(labels: dict[str, str]) -> str:
    """Labels with backslash, quote and line break escaped."""
    if not labels:
        return ""
    escape = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "{" + ",".join(f'{name}="{value.translate(escape)}"' for name, value in labels.items()) + "}"
