"""The status page as HTML: what comes from films and senders is escaped, nothing is loaded from elsewhere."""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from anomalib_cxr import __version__
from anomalib_cxr.anatomy.assessable import NOT_ASSESSABLE
from anomalib_cxr.node.journal import Journal
from anomalib_cxr.node.scores_seen import BINS, ScoresSeen, Watch
from anomalib_cxr.node.shelf import LoadedModel, Shelf
from anomalib_cxr.node.spool import Spool
from anomalib_cxr.node.worklist import PAGE, Row, film_rows, worklist

STYLE = """
:root { color-scheme: dark; --line: #3a3f46; --hot: #ff9628; --dim: #a0a7b0; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1rem 2rem; max-width: 75rem; background: #14171a; color: #e8eaed;
  font: 16px/1.45 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; align-items: baseline; padding: .8rem 0;
  border-bottom: 1px solid var(--line); }
h1 { font-size: 1.15rem; margin: 0; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
a { color: #8ec5ff; } nav { display: flex; gap: 1rem; }
.warning { color: #ffd54a; font-weight: 600; } .dim { color: var(--dim); } .hot { color: var(--hot); }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; }
.cards div { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .9rem; min-width: 6.5rem; }
.cards b { display: block; font-size: 1.4rem; }
.scroll { overflow-x: auto; } .short { white-space: nowrap; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: middle; overflow-wrap: anywhere; }
th { color: var(--dim); font-weight: 500; } td.number, th.number { font-variant-numeric: tabular-nums; }
img { display: block; max-width: 100%; } td img { height: 84px; width: auto; max-width: none; }
svg { display: block; width: 100%; max-width: 40rem; height: auto; }
.film { position: relative; max-width: 48rem; } .film img { width: 100%; }
.film img + img { position: absolute; inset: 0; }
input[type=range] { width: 100%; max-width: 48rem; height: 2.2rem; }
@media (max-width: 40rem) {
  .list thead { display: none; } .list tr { display: grid; grid-template-columns: auto 1fr; column-gap: .8rem;
    border-bottom: 1px solid var(--line); padding: .5rem 0; }
  .list td { border: 0; padding: .1rem 0; grid-column: 2; } .list td:first-child { grid-column: 1; grid-row: 1 / 7; }
  .list td[data-name]::before { content: attr(data-name) " "; color: var(--dim); }
}
"""

#: Lays the map over the film as strongly as the slider says.
SCRIPT = """
const slider = document.getElementById("strength"), map = document.getElementById("map");
const show = () => { map.style.opacity = slider.value / 100; };
slider.addEventListener("input", show); show();
"""


def overview(journal: Journal, shelf: Shelf, watch: Watch) -> str:
    """The first page: counts, queue, what went wrong, and each model's scores."""
    today = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    counts, waiting = journal.counts(today), journal.waiting()
    unfit = {NOT_ASSESSABLE: journal.not_assessable(today)}
    parts = ["<h2>Today</h2>", _cards({**counts, **unfit}), "<h2>Waiting</h2>", _cards(waiting)]
    if shelf.problem is not None:
        parts.append(f'<p class="warning">The old models stay in use: {escape(shelf.problem)}</p>')
    parts += ["<h2>Scores</h2>", *(_model(model, watch(model)) for model in shelf.models)]
    parts += ["<h2>Last failures</h2>", _failures(journal)]
    return _page("Overview", "".join(parts), refresh=True)


def worklist_page(journal: Journal, spool: Spool, page: int) -> str:
    """A page of the worklist, the most unusual films first."""
    rows = worklist(journal, spool, page)
    body = "".join(_worklist_row(row) for row in rows)
    heads = ("", "p", "Score", "Decision", "Patient", "Study", "State")
    head = "".join(f"<th>{name}</th>" for name in heads)
    links = [f'<a href="/worklist?page={page - 1}">earlier in the list</a>'] if page else []
    links += [f'<a href="/worklist?page={page + 1}">later in the list</a>'] if len(rows) == PAGE else []
    listed = f'<table class="list"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    content = listed if rows else "<p>No film has been scored, or all have been deleted.</p>"
    table = '<p><a href="/worklist.csv">as a table (CSV)</a></p>'
    return _page("Worklist", f"{table}{content}<nav>{' '.join(links)}</nav>")


def film_page(journal: Journal, spool: Spool, film: int, model: str | None) -> str | None:
    """One film with the map of a model, the first unless told; None if there is no such film."""
    rows = film_rows(journal, spool, film)
    if not rows:
        return None
    row = next((one for one in rows if one.model_sha256 == model), rows[0])
    header = row.header
    base = f"/film/{row.film}"
    pictures = (
        f'<div class="film"><img src="{base}/film.jpg" alt="the film">'
        f'<img id="map" src="{base}/map/{row.model_sha256[:16]}" alt="the heat map over it"></div>'
        '<label for="strength">Strength of the map</label>'
        '<input type="range" id="strength" min="0" max="100" value="100">'
    )
    others = " ".join(f'<a href="{base}?model={one.model_sha256}">{escape(one.model)}</a>' for one in rows)
    facts = [
        ("Decision", _decision(row)),
        ("Score", f"{row.score:.3f}, threshold {row.threshold:.3f}"),
        ("p-value", "none without a site file" if row.p_value is None else f"{row.p_value:.3g}"),
        ("Model", f"{escape(row.model)} <span class=dim>{row.model_sha256[:16]}</span>"),
        ("Models of this film", others),
        ("Patient", f"{escape(header['PatientName'])} <span class=dim>{escape(header['PatientID'])}</span>"),
        ("Study", escape(f"{header['StudyDate']} {header['AccessionNumber']} {header['SeriesDescription']}")),
        ("State", row.state),
    ]
    listed = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in facts)
    script = '<script src="/slider.js" defer></script>'
    return _page(f"Film {row.film}", f"<h2>Film {row.film}</h2>{pictures}<table>{listed}</table>{script}")


def _page(title: str, body: str, refresh: bool = False) -> str:
    again = '<meta http-equiv="refresh" content="30">' if refresh else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'{again}<title>{escape(title)} · anomalib-cxr node</title><link rel="stylesheet" href="/style.css"></head>'
        '<body><header><h1>anomalib-cxr node</h1><nav><a href="/">Overview</a><a href="/worklist">Worklist</a></nav>'
        f'<span class="warning">For research. NOT FOR DIAGNOSIS.</span><span class="dim">{__version__}</span></header>'
        f"<main>{body}</main></body></html>"
    )


def _cards(numbers: Mapping[Any, int]) -> str:
    cards = "".join(f"<div><b>{number}</b>{escape(name)}</div>" for name, number in numbers.items())
    return f'<div class="cards">{cards}</div>'


def _decision(row: Row) -> str:
    if row.not_assessable:
        return f'<span class="warning">{row.decision}</span>: {escape(row.not_assessable)}'
    return '<span class="hot">abnormal</span>' if row.abnormal else "normal"


def _worklist_row(row: Row) -> str:
    link = f"/film/{row.film}?model={row.model_sha256}"
    small = f'<img src="/film/{row.film}/small/{row.model_sha256[:16]}" alt="film {row.film}" loading="lazy">'
    cells = [
        ("p", "" if row.p_value is None else f"{row.p_value:.3g}"),
        ("score", f"{row.score:.3f}"),
        ("", _decision(row)),
        ("", f"{escape(row.header['PatientName'])} <span class=dim>{escape(row.header['PatientID'])}</span>"),
        ("", escape(f"{row.header['StudyDate']} {row.header['AccessionNumber']}")),
        ("", row.state),
    ]
    named = "".join(f"<td{f' data-name={name}' if name else ''}>{value}</td>" for name, value in cells)
    return f'<tr><td><a href="{link}">{small}</a></td>{named}</tr>'


def _failures(journal: Journal) -> str:
    rows = journal.query(
        "SELECT id, uid_sha256, sender, reason, next_try FROM films WHERE state = 'failed' ORDER BY id DESC LIMIT 20"
    )
    if not rows:
        return "<p>None.</p>"
    now = time.time()
    body = "".join(
        f"<tr><td>{row['id']}</td><td class=short>{row['uid_sha256'][:16]}</td>"
        f"<td class=short>{escape(row['sender'])}</td><td>{escape(row['reason'] or '')}</td>"
        f"<td class=short>{_next_try(row['next_try'], now)}</td></tr>"
        for row in rows
    )
    head = "".join(f"<th class=short>{name}</th>" for name in ("Film", "Hash", "Sender", "Reason", "Next try"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _next_try(moment: float | None, now: float) -> str:
    return "given up" if moment is None else f"in {max(0, round(moment - now))} s"


def _model(model: LoadedModel, seen: ScoresSeen) -> str:
    site = model.judge.site
    of_site = "no site file: decisions are the model's" if site is None else (
        f"{len(site.scores)} films of the site, false-positive rate {model.judge.rate:g}"
    )  # fmt: skip
    if seen.evidence is None:
        drift = "No drift alarm without reference films and scored ones."
    elif seen.alarm:
        drift = (
            '<span class="warning">DRIFT ALARM: the scores have changed. Look at films of before and after, and '
            "commission anew.</span>"
        )
    else:
        drift = f"No drift alarm; evidence of a change is 10^{seen.evidence:.1f}."
    mix = (
        " The reference are the site's normal films, and all films are watched: abnormal ones count as a change."
        if model.configuration.reference is None and seen.references
        else ""
    )
    return (
        f"<h3>{escape(model.name)}</h3><p class=dim>{escape(model.kind)} {model.sha256[:16]}; {of_site}; threshold "
        f"{model.judge.threshold:.3f}</p>{_histogram(seen, model.judge.threshold)}"
        f"<p>{seen.films} films scored (orange), {seen.references} of the reference (grey). {drift}{mix}</p>"
    )


def _histogram(seen: ScoresSeen, threshold: float) -> str:
    width, height = 400, 90
    groups: list[tuple[Sequence[float] | npt.NDArray[np.float64], str]] = [(seen.here, "#ff9628")]
    if seen.reference is not None:
        groups.insert(0, (seen.reference, "#8a929c"))
    highest = max(float(np.max(shares)) for shares, _ in groups) or 1.0
    bar = width / BINS / len(groups)
    bars = "".join(
        f'<rect x="{place * width / BINS + number * bar:.1f}" y="{height * (1 - share / highest):.1f}" '
        f'width="{bar - 1:.1f}" height="{height * share / highest:.1f}" fill="{colour}"/>'
        for number, (shares, colour) in enumerate(groups)
        for place, share in enumerate(shares)
    )
    line = f'<line x1="{width * threshold:.1f}" x2="{width * threshold:.1f}" y1="0" y2="{height}" stroke="#fff"/>'
    numbers = "".join(
        f'<text x="{x}" y="{height + 14}" fill="#a0a7b0" font-size="11" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in ((0, "start", "0"), (width // 2, "middle", "score"), (width, "end", "1"))
    )
    told = "shares of films by score, from 0 to 1"
    return (
        f'<svg viewBox="0 0 {width} {height + 18}" role="img" aria-label="{told}">{bars}'
        f"{line if 0 <= threshold <= 1 else ''}{numbers}</svg>"
    )
