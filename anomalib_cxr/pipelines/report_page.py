"""The page of a report, from the figures and pictures of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import anomalib
import numpy as np
import pandas as pd
import torch

from anomalib_cxr import __version__
from anomalib_cxr.metrics.bootstrap import Interval
from anomalib_cxr.pipelines.report_evaluation import (
    Bootstrap,
    Comparison,
    Evaluation,
    compare,
    gallery,
    group_by_images,
)
from anomalib_cxr.pipelines.report_figures import COLOURS, curve_figure, histogram_figure
from anomalib_cxr.pipelines.report_html import Child, Element, page, table, tag

_SHOWN = ("sensitivity", "specificity", "precision", "F1", "accuracy")
_MAPS = {
    "AnatPaste": "Maps are Grad-CAMs on the last feature map: they say which region, not where exactly.",
    "MultiResPatchSSL": "Maps are distances of patches to their nearest normal patches at about the same place.",
}


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
) -> str:
    """Write the page.

    Args:
        title: Its title.
        evaluations: Runs in order.
        pictures: Pictures of each run, by its name.
        broken: Reason for each run that could not be read.
        bootstrap: How intervals were drawn.
        shown: Images of each kind in a gallery.

    Returns:
        HTML of a page that needs nothing but itself.
    """
    parts: list[Child] = [
        tag("h1", title),
        tag(
            "p",
            f"For research: not a medical device, not for diagnosis. Intervals are {bootstrap.level:.0%} intervals by "
            f"a bootstrap over patients, {bootstrap.draws} draws. Thresholds were chosen on validation images.",
            class_="note",
        ),
    ]
    if broken:
        listed = [tag("li", tag("strong", name), f": {reason}") for name, reason in broken.items()]
        parts.append(tag("div", "These runs could not be used:", tag("ul", *listed), class_="warning"))
    if len(evaluations) > 1:
        links = [tag("li", tag("a", one.name, href=f"#run-{i}")) for i, one in enumerate(evaluations)]
        links += [tag("li", tag("a", "Model card", href="#card"))]
        parts.append(tag("nav", tag("ul", *links)))
    parts += [tag("h2", "Overview"), _overview(evaluations)]
    parts += _comparisons(evaluations, bootstrap)
    for index, one in enumerate(evaluations):
        parts += _run(f"run-{index}", one, pictures.get(one.name, Pictures()), shown)
    parts += _model_card(evaluations)
    return page(title, *parts)


# ---------------------------------------------------------------------------------------------------- all runs


def _overview(evaluations: Sequence[Evaluation]) -> Element:
    rows = []
    for index, one in enumerate(evaluations):
        point = one.chosen
        cells: list[Child] = [tag("a", one.name, href=f"#run-{index}"), *map(str, _counts(one.labelled))]
        cells += [_figure(one.values, one.intervals, name) for name in ("AUROC", "AUPR")]
        for name in ("F1", "sensitivity", "specificity"):
            cells.append(_figure(point.test, point.intervals, name) if point else "–")
        cells.append(tag("td", point.rule if point else "–", class_="text"))
        rows.append(cells)
    head = ["run", "normal", "abnormal", "AUROC", "AUPR", "F1", "sensitivity", "specificity", "threshold on validation"]
    return table(head, rows)


def _comparisons(evaluations: Sequence[Evaluation], bootstrap: Bootstrap) -> list[Child]:
    if len(evaluations) < 2:
        return []
    parts: list[Child] = [tag("h2", "Runs side by side")]
    groups, refused = group_by_images(evaluations)
    parts += [tag("p", f"Not compared: {reason}", class_="warning") for reason in refused]
    for group in groups:
        able = [one for one in group if one.has_both]
        if len(able) < 2:
            continue
        if len(groups) > 1:
            parts.append(tag("h3", f"On the images of {group[0].name}"))
        drawn = able[: len(COLOURS)]
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
        names = [tag("span", f"■ {one.name}  ", style=f"color:{COLOURS[i]}") for i, one in enumerate(drawn)]
        parts.append(tag("p", *names, class_="legend"))
        if len(drawn) < len(able):
            parts.append(tag("p", f"Curves of the first {len(drawn)} of {len(able)} runs.", class_="note"))
        found, problem = compare(able, bootstrap)
        parts.append(tag("p", f"No comparison: {problem}", class_="warning") if problem else _comparison_table(found))
    return parts if len(parts) > 1 else []


def _comparison_table(found: Sequence[Comparison]) -> Element:
    rows: list[list[Child]] = [
        [
            tag("td", f"{one.a} − {one.b}", class_="text"),
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
    parts: list[Child] = [tag("h2", one.name, id=anchor), _facts(one)]
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
    quality = one.finished.lung_quality
    if quality or pictures.sheets:
        parts.append(tag("h3", "Lung masks and sheets of the run"))
        parts.append(tag("p", quality) if quality else None)
        sheets = [
            tag("figure", tag("img", src=uri, alt=name, class_="sheet"), tag("figcaption", name))
            for name, uri in pictures.sheets.items()
        ]
        parts.append(tag("div", *sheets, class_="figures") if sheets else None)
    text = one.finished.config_text
    if text:
        parts.append(tag("details", tag("summary", "Configuration of the run"), tag("pre", text)))
    return parts


def _facts(one: Evaluation) -> Element:
    run = one.finished
    normal, abnormal = _counts(one.labelled)
    patients = one.labelled["patient_id"].replace("", np.nan).nunique()
    versions = run.done.get("versions")
    seconds = run.done.get("fit_seconds")
    facts = {
        "model": run.class_name("model"),
        "data": run.class_name("data"),
        "test images": f"{len(run.test)}: {normal} normal, {abnormal} abnormal, of {patients or 'unknown'} patients",
        "validation images": "" if run.validation is None else str(len(run.validation)),
        "split (SHA-256)": ", ".join(run.split_hashes) or "not known",
        "trained in": f"{seconds / 60:.1f} min" if isinstance(seconds, int | float) else "",
        "versions of the run": ", ".join(f"{k} {v}" for k, v in versions.items())
        if isinstance(versions, dict)
        else "not known",
        "heat maps": _MAPS.get(run.class_name("model"), ""),
    }
    pairs: list[Child] = []
    for name, value in facts.items():
        pairs += [tag("dt", name), tag("dd", value)] if value else []
    return tag("dl", *pairs)


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
            rows.append([first, tag("td", point.problem, class_="text", colspan=3 + len(_SHOWN))])
            continue
        on_validation = [_number(point.validation.get(name, np.nan)) for name in ("sensitivity", "specificity")]
        cells = [_figure(point.test, point.intervals, name) for name in _SHOWN]
        rows.append([first, f"{point.threshold:.5g}", *on_validation, *cells])
    head = ["rule", "raw score ≥", "sens., validation", "spec., validation", *_SHOWN]
    return table(head, rows)


def _findings(findings: pd.DataFrame) -> Element:
    rows: list[list[Child]] = []
    for row in findings.to_dict("records"):
        cells: list[Child] = [str(row["finding"]), str(row["cases"]), str(row["normals"])]
        cells += [
            _with_interval(row[name], Interval(row[f"{name}_low"], row[f"{name}_high"]))
            for name in ("AUROC", "accuracy", "F1")
        ]
        rows.append(cells)
    return table(["finding", "cases", "normals", "AUROC", "accuracy", "F1"], rows)


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
        cells = (run.class_name("model") or "not known", run.class_name("data") or "not known", hashes)
        rows.append([one.name, *(tag("td", cell, class_="text") for cell in cells)])
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
        table(["run", "model", "data", "split"], rows),
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
    if interval is None or np.isnan(interval.low):
        return tag("td", text)
    return tag("td", text, tag("span", _range(interval), class_="interval"))


def _plain(value: float, interval: Interval) -> str:
    return f"{value:.3f} ({_range(interval)})"


def _range(interval: Interval) -> str:
    return (
        f"{interval.low:.3f}–{interval.high:.3f}" if interval.low >= 0 else f"{interval.low:.3f} to {interval.high:.3f}"
    )


def _number(value: float, digits: int = 3) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def _p_value(value: float) -> str:
    if np.isnan(value):
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
