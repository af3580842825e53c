"""The page of a report, from the figures and pictures of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anomalib
import numpy as np
import pandas as pd
import torch
import yaml

from anomalib_cxr import __version__
from anomalib_cxr.folders import without_folders
from anomalib_cxr.metrics.bootstrap import Interval
from anomalib_cxr.metrics.findings import BY_FINDING
from anomalib_cxr.metrics.image_level import RANK_METRICS, THRESHOLD_METRICS
from anomalib_cxr.pipelines.report.evaluation import (
    ALL_PAIRS,
    Bootstrap,
    Comparison,
    Evaluation,
    choose_reference,
    compare,
    gallery,
    group_by_images,
    same_scores,
)
from anomalib_cxr.pipelines.report.figures import COLOURS, curve_figure, histogram_figure
from anomalib_cxr.pipelines.report.html import Child, Element, breakable, page, table, tag
from anomalib_cxr.pipelines.report.runs import FinishedRun


@dataclass
class Pictures:
    """What is shown of one run."""

    by_image: dict[str, str] = field(default_factory=dict)
    """Image and the ``data:`` URI of its heat maps."""
    sheets: dict[str, str] = field(default_factory=dict)
    """Title and ``data:`` URI."""
    nearest: list[tuple[str, str, str]] = field(default_factory=list)
    """Image, ``data:`` URI of its patches beside the nearest normal ones, and text."""
    notes: list[str] = field(default_factory=list)


def make_page(
    title: str,
    evaluations: Sequence[Evaluation],
    pictures: Mapping[str, Pictures],
    broken: Mapping[str, str],
    bootstrap: Bootstrap,
    shown: int,
    reference: str | None = None,
) -> str:
    """Write the page.

    Args:
        title: Its title.
        evaluations: Runs in order.
        pictures: Pictures of each run, by its name.
        broken: Reason for each run that could not be read.
        bootstrap: How intervals were drawn.
        shown: Images of each kind in a gallery.
        reference: Run that the others are compared with.

    Returns:
        HTML of a page that needs nothing but itself.
    """
    parts: list[Child] = [
        tag("h1", title),
        tag(
            "p",
            f"For research: not a medical device, not for diagnosis. Intervals are {bootstrap.level:.0%} intervals by "
            f"a bootstrap over patients, {bootstrap.draws} draws. A draw without the label that a figure needs is left "
            "out, and counted beside the interval. Thresholds were chosen on validation images.",
            class_="note",
        ),
    ]
    if broken:
        listed = [tag("li", tag("strong", name), f": {reason}") for name, reason in broken.items()]
        parts.append(tag("div", "These runs could not be used:", tag("ul", *listed), class_="warning"))
    if len(evaluations) > 1:
        links = [tag("li", tag("a", *breakable(one.name), href=f"#run-{i}")) for i, one in enumerate(evaluations)]
        links += [tag("li", tag("a", "Model card", href="#card"))]
        parts.append(tag("nav", tag("ul", *links)))
    parts += [tag("h2", "Overview"), _overview(evaluations)]
    parts += _comparisons(evaluations, bootstrap, reference)
    for index, one in enumerate(evaluations):
        parts += _run(f"run-{index}", one, pictures.get(one.name, Pictures()), shown)
    parts += _model_card(evaluations)
    return page(title, *parts)


# ---------------------------------------------------------------------------------------------------- all runs


def _overview(evaluations: Sequence[Evaluation]) -> Element:
    repeated = same_scores(evaluations)
    of_ranks, of_decisions = (
        [name for name, metric in metrics.items() if metric.in_overview]
        for metrics in (RANK_METRICS, THRESHOLD_METRICS)
    )
    rows = []
    for index, one in enumerate(evaluations):
        point = one.chosen
        named: list[Child] = [tag("a", *breakable(one.name), href=f"#run-{index}")]
        if one.name in repeated:
            named.append(tag("span", "same scores as ", *breakable(repeated[one.name]), class_="interval"))
        cells: list[Child] = [tag("td", *named), *map(str, _counts(one.labelled))]
        cells += [_figure(one.values, one.intervals, name) for name in of_ranks]
        cells += [_figure(point.test, point.intervals, name) if point else "–" for name in of_decisions]
        cells.append(tag("td", point.rule if point else "–", class_="text"))
        rows.append(cells)
    head = ["run", "normal", "abnormal", *of_ranks, *of_decisions, "threshold on validation"]
    return table(head, rows)


def _comparisons(evaluations: Sequence[Evaluation], bootstrap: Bootstrap, reference: str | None) -> list[Child]:
    if len(evaluations) < 2:
        return []
    parts: list[Child] = [tag("h2", "Runs side by side")]
    groups, refused = group_by_images(evaluations)
    parts += [tag("p", f"Not compared: {reason}", class_="warning") for reason in refused]
    for group in groups:
        able = [one for one in group if one.has_both]
        # A run that repeats another is no second test: a comparison with each would count one result twice.
        repeated = same_scores(sorted(able, key=lambda one: one.name != reference))
        if len(able) < 2:
            continue
        if len(groups) > 1:
            parts.append(tag("h3", "On the images of ", *breakable(group[0].name)))
        if repeated:
            listed = [
                tag("li", *breakable(name), " has the scores of ", *breakable(first))
                for name, first in repeated.items()
            ]
            text = "Runs with identical scores are drawn and compared once, and count once in Holm's correction:"
            parts.append(tag("div", text, tag("ul", *listed), class_="note"))
        able = [one for one in able if one.name not in repeated]
        if len(able) < 2:
            continue
        ranked = sorted(able, key=lambda one: (one.finished.is_last, -one.values["AUROC"]))
        drawn = able if len(able) <= len(COLOURS) else ranked[: len(COLOURS)]
        curves = {one.name: one.roc for one in drawn if one.roc is not None}
        steps = {one.name: one.precision_recall for one in drawn if one.precision_recall is not None}
        parts.append(
            tag(
                "div",
                tag("figure", curve_figure(curves, "false-positive rate", "sensitivity", diagonal=True)),
                tag("figure", curve_figure(steps, "recall", "precision")),
                class_="figures",
            )
        )
        names = [
            tag("span", "■ ", *breakable(one.name), "  ", style=f"color:{COLOURS[i]}") for i, one in enumerate(drawn)
        ]
        parts.append(tag("p", *names, class_="legend"))
        if len(drawn) < len(able):
            parts.append(
                tag(
                    "p",
                    f"Curves of {len(drawn)} of {len(able)} runs: those of the highest AUROC, by last weights only "
                    "where colours are left.",
                    class_="note",
                )
            )
        with_all = choose_reference(able, reference)
        found, problem = compare(able, bootstrap, with_all)
        if with_all is not None:
            why = "as asked for" if with_all.name == reference else f"the first by name, as there are over {ALL_PAIRS}"
            parts.append(
                tag(
                    "p",
                    "Every run is compared with the reference run ",
                    tag("strong", *breakable(with_all.name)),
                    f" ({why}; --reference chooses another).",
                )
            )
        parts.append(tag("p", f"No comparison: {problem}", class_="warning") if problem else _comparison_table(found))
    return parts if len(parts) > 1 else []


def _comparison_table(found: Sequence[Comparison]) -> Element:
    rows: list[list[Child]] = [
        [
            tag("td", *breakable(one.a), " − ", *breakable(one.b), class_="text"),
            _with_interval(one.test.difference, one.interval, signed=True),
            _number(one.test.z, 2),
            _p_value(one.test.p_value),
            _p_value(one.adjusted),
        ]
        for one in found
    ]
    note = tag(
        "p",
        "Difference of AUROCs with its interval over patients; DeLong's two-sided test, which takes images for "
        "independent (– where the difference has no variance); Holm's correction for the number of rows of this table.",
        class_="note",
    )
    return tag("div", table(["runs", "difference", "z", "p (DeLong)", "p (Holm)"], rows), note)


# ---------------------------------------------------------------------------------------------------- one run


def _run(anchor: str, one: Evaluation, pictures: Pictures, shown: int) -> list[Child]:
    parts: list[Child] = [tag("h2", *breakable(one.name), id=anchor), _facts(one)]
    if one.finished.is_last:
        parts.append(
            tag(
                "p",
                "The last weights of the run above, chosen without any label; no pictures were drawn by them.",
                class_="note",
            )
        )
    parts += [tag("p", note, class_="warning") for note in one.notes]
    parts.append(_figures(one))
    if one.points:
        parts += [tag("h3", "Operating points, chosen on validation"), _points(one)]
    if one.findings is not None and len(one.findings):
        parts += [
            tag("h3", "By finding, against all normal images"),
            _findings(one.findings),
            tag(
                "p",
                "Findings of fewer than 10 images have no interval. Threshold: that of the first operating point.",
                class_="note",
            ),
        ]
    parts += _gallery(one, pictures, shown)
    parts += [tag("p", note, class_="note") for note in pictures.notes]
    if pictures.nearest:
        parts += [
            tag("h3", "Nearest normal patches"),
            tag(
                "p",
                "For each patch size the patch that deviates most, and the normal training patch it was compared with.",
                class_="note",
            ),
            tag("div", *(_tile(uri, text, image) for image, uri, text in pictures.nearest), class_="gallery"),
        ]
    quality = one.finished.region_quality
    if quality or pictures.sheets:
        parts.append(tag("h3", "Region masks and sheets of the run"))
        parts.append(tag("p", quality) if quality else None)
        sheets = [
            tag("figure", tag("img", src=uri, alt=name, class_="sheet"), tag("figcaption", name))
            for name, uri in pictures.sheets.items()
        ]
        parts.append(tag("div", *sheets, class_="figures") if sheets else None)
    parts += _configuration(one.finished)
    return parts


def _configuration(run: FinishedRun) -> list[Child]:
    """The configuration as it was written but for folders, or what the run itself says of model and data."""
    text, title = without_folders(run.config_text), "Configuration of the run"
    known = {part: run.record[part] for part in ("model", "data") if run.record.get(part)}
    if not text and known:
        text = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
        title = "Model and data of the run, with their arguments"
    parts: list[Child] = [tag("details", tag("summary", title), tag("pre", text))] if text else []
    # A job of a cross-validation that is older than run.json has told its versions.
    if run.record_problem and (run.has_record or not run.versions):
        text = f"{run.record_problem}: what is not in other files of the run is not known."
        parts.append(tag("p", text, class_="note"))
    return parts


def _facts(one: Evaluation) -> Element:
    run = one.finished
    normal, abnormal = _counts(one.labelled)
    patients = one.labelled["patient_id"].replace("", np.nan).nunique()
    seconds = run.done.get("fit_seconds")
    trained_with = run.training.get("versions") or run.versions
    facts = {
        "model": run.class_name("model"),
        "data": run.class_name("data"),
        "test images": f"{len(run.test)}: {normal} normal, {abnormal} abnormal, of {patients or 'unknown'} patients",
        "validation images": "" if run.validation is None else str(len(run.validation)),
        "split (SHA-256)": ", ".join(run.split_hashes) or "not known",
        "weights": _weights(run),
        "trained in": f"{seconds / 60:.1f} min" if isinstance(seconds, int | float) and np.isfinite(seconds) else "",
        "trained on": _device(run.training),
        "tested on": _device(run.record),
        "date of the test": str(run.record.get("date", "")),
        "versions of the run": _versions(run.versions) or "not known",
        "versions of the training": _versions(trained_with) if trained_with != run.versions else "",
        "heat maps": run.record.get("map", ""),
    }
    pairs: list[Child] = []
    for name, value in facts.items():
        pairs += [tag("dt", name), tag("dd", value)] if value else []
    return tag("dl", *pairs)


def _versions(versions: object) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""


def _weights(run: FinishedRun) -> str:
    """Which weights were tested: checkpoint and step, as far as they are known."""
    checkpoint, step = run.record.get("checkpoint"), run.record.get("step")
    if checkpoint is None and step is None:
        return "the last of the training" if run.is_last else ""
    return f"{checkpoint or 'those in memory after the training'}, step {'not known' if step is None else step}"


def _device(circumstances: Mapping[str, Any]) -> str:
    parts = [circumstances.get("device"), circumstances.get("precision") and f"precision {circumstances['precision']}"]
    processes = circumstances.get("processes")
    if isinstance(processes, int) and processes > 1:
        parts.append(f"{processes} processes")
    return ", ".join(str(part) for part in parts if part)


def _figures(one: Evaluation) -> Element:
    figures: list[Child] = []
    for curve, name, x, y in (
        (one.roc, "AUROC", "false-positive rate", "sensitivity"),
        (one.precision_recall, "AUPR", "recall", "precision"),
    ):
        if curve is not None:
            drawn = curve_figure({one.name: curve}, x, y, diagonal=name == "AUROC")
            caption = f"{name} {_plain(one.values[name], one.intervals[name])}"
            figures.append(tag("figure", drawn, tag("figcaption", caption)))
    test = one.finished.test
    chosen = one.chosen
    lines = {} if chosen is None or chosen.threshold is None else {chosen.rule: chosen.threshold}
    drawn = histogram_figure(test["raw_score"].to_numpy(), test["label"].tolist(), lines)
    figures.append(tag("figure", drawn, tag("figcaption", "Raw scores of the test images.")))
    return tag("div", *figures, class_="figures")


def _points(one: Evaluation) -> Element:
    rows: list[list[Child]] = []
    for point in one.points:
        first = tag("td", point.rule, class_="text")
        if point.threshold is None:
            rows.append([first, tag("td", point.problem, class_="text", colspan=3 + len(THRESHOLD_METRICS))])
            continue
        on_validation = [_number(point.validation.get(name, np.nan)) for name in ("sensitivity", "specificity")]
        cells = [_figure(point.test, point.intervals, name) for name in THRESHOLD_METRICS]
        rows.append([first, f"{point.threshold:.5g}", *on_validation, *cells])
    head = ["rule", "raw score ≥", "sens., validation", "spec., validation", *THRESHOLD_METRICS]
    return table(head, rows)


def _findings(findings: pd.DataFrame) -> Element:
    rows: list[list[Child]] = []
    for row in findings.to_dict("records"):
        cells: list[Child] = [str(row["finding"]), str(row["cases"]), str(row["normals"])]
        for name in BY_FINDING:
            undefined = int(row.get(f"{name}_undefined", 0))
            cells.append(_with_interval(row[name], Interval(row[f"{name}_low"], row[f"{name}_high"], undefined)))
        rows.append(cells)
    return table(["finding", "cases", "normals", *BY_FINDING], rows)


def _gallery(one: Evaluation, pictures: Pictures, shown: int) -> list[Child]:
    parts: list[Child] = []
    if not shown or one.finished.is_last:
        return parts
    for title, (rows, total) in gallery(one, shown).items():
        parts.append(tag("h3", f"{title}: {len(rows)} of {total}"))
        if not total:
            parts.append(tag("p", "None.", class_="note"))
            continue
        tiles = []
        for row in rows.to_dict("records"):
            facts = [
                row["label"] or "no label",
                row["findings"].replace("|", ", "),
                f"raw score {row['raw_score']:.4g}",
            ]
            if not np.isnan(row["p_value"]):
                facts.append(f"p {row['p_value']:.3g}")
            text = "; ".join(fact for fact in facts if fact)
            tiles.append(_tile(pictures.by_image.get(row["image"]), text, row["image"]))
        parts.append(tag("div", *tiles, class_="gallery"))
    return parts


def _tile(uri: str | None, text: str, image: str) -> Element:
    caption = tag("figcaption", tag("strong", image), tag("br"), text)
    if uri is None:
        return tag("figure", tag("p", "no picture", class_="note"), caption)
    return tag("figure", tag("img", src=uri, alt=f"Heat maps of {image}"), caption)


# ---------------------------------------------------------------------------------------------------- model card


def _model_card(evaluations: Sequence[Evaluation]) -> list[Child]:
    rows: list[list[Child]] = []
    for one in evaluations:
        run = one.finished
        hashes = ", ".join(text[:12] for text in run.split_hashes) or "not known"
        known = (run.class_name("model"), run.class_name("data"), hashes, _weights(run), _versions(run.versions))
        cells = [cell or "not known" for cell in known]
        rows.append([tag("td", *breakable(one.name)), *(tag("td", cell, class_="text") for cell in cells)])
    limits = [
        "A score says how unusual an image is among the normal images that the model was trained on. It is no "
        "probability of disease, and means nothing at another hospital, machine, projection or age until measured "
        "there.",
        "Thresholds hold for the source of the validation images; precision changes with the share of abnormal images.",
        "P-values are the share of normal validation images that score as high. They hold for new normal images of the "
        "same source and patients alike, and not for several images of one patient.",
        "Intervals tell what other patients of the same source would change. What another training would change, only "
        "several seeds tell.",
        "Heat maps show what a score was made of. They are no outlines of lesions, and no evidence that a finding "
        "is there.",
        "Detectors also react to devices, markers, positioning, age and exposure: look at the false positives above.",
    ]
    few = [one.name for one in evaluations if one.has_both and min(_counts(one.labelled)) < 50]
    if few:
        limits.append(f"Fewer than 50 test images of one label: {', '.join(few)}. Such figures rank nothing.")
    used = {"anomalib-cxr": __version__, "anomalib": anomalib.__version__, "torch": str(torch.__version__)}
    return [
        tag("h2", "Model card", id="card"),
        tag("h3", "What was evaluated"),
        table(["run", "model", "data", "split", "weights", "versions"], rows),
        tag("h3", "Intended use"),
        tag(
            "p",
            "Research on anomaly detection in chest radiographs: comparing methods on public or own data, and studying "
            "whether a detector might help to order a worklist. Trained on normal images alone, it flags what "
            "deviates; it names no disease.",
        ),
        tag("h3", "Not intended for"),
        tag(
            "p",
            "Diagnosis, triage or any decision about a patient, alone or as a second reader; images other than frontal "
            "chest radiographs; populations that the training data do not hold.",
        ),
        tag("h3", "Limits"),
        tag("ul", *(tag("li", limit) for limit in limits)),
        tag("h3", "This page"),
        tag(
            "p",
            "It holds radiographs and names of files: pass it on only as the data set's terms allow. It was made "
            f"with {', '.join(f'{name} {version}' for name, version in used.items())}.",
        ),
    ]


# ---------------------------------------------------------------------------------------------------- numbers


def _counts(labelled: pd.DataFrame) -> tuple[int, int]:
    return int((labelled["label"] == "normal").sum()), int((labelled["label"] == "abnormal").sum())


def _figure(values: Mapping[str, float], intervals: Mapping[str, Interval], name: str) -> Element:
    return _with_interval(values.get(name, np.nan), intervals.get(name))


def _with_interval(value: float, interval: Interval | None, signed: bool = False) -> Element:
    if np.isnan(value):
        return tag("td", "–")
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    if interval is None:
        return tag("td", text)
    lines = [_range(interval), _left_out(interval)]
    return tag("td", text, *(tag("span", line, class_="interval") for line in lines if line))


def _plain(value: float, interval: Interval) -> str:
    return f"{value:.3f} ({', '.join(filter(None, (_range(interval), _left_out(interval))))})"


def _range(interval: Interval) -> str:
    if np.isnan(interval.low):
        return "no interval" if interval.undefined else ""
    joint = "–" if interval.low >= 0 else " to "
    return f"{interval.low:.3f}{joint}{interval.high:.3f}"


def _left_out(interval: Interval) -> str:
    return f"{interval.undefined} draws left out" if interval.undefined else ""


def _number(value: float, digits: int = 3) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def _p_value(value: float) -> str:
    if np.isnan(value):
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
