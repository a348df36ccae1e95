"""The verdict as one HTML page that needs nothing else: no network, no script, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Any

from claudefs_repl.observations import Outcome
from claudefs_repl.verdict import Ruling
from nodes.chaos import measures
from nodes.chaos.drawing import Axis, Span, lanes, lines
from nodes.chaos.fault_kinds import KINDS, describe
from nodes.chaos.report import RULINGS, Report, StoryLine, event_text

LOG_LINES_MAX = 1500
"""Of the merged log: about 300 KB of a page."""
NOTES_MAX = 300
FINDINGS_SHOWN_MAX = 5
CSS_OF_RULING = {Ruling.HELD: "held", Ruling.BROKEN: "violated", Ruling.NOT_EXERCISED: "not"}


def report_page(report: Report) -> str:
    """The whole page."""
    run = report.run
    scenario = run.scenario
    style = resources.files("nodes.chaos").joinpath("page.css").read_text(encoding="utf-8")
    state = "held" if report.held else "violated"
    words = "every promise held" if report.held else "violated"
    excerpt = log_excerpt(report)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(scenario.title)}: {words}</title><style>{style}</style></head><body><main>",
        f'<p class="dim">claudefs-repl chaos · {escape(scenario.name)} · seed {scenario.workload.seed} · '
        f"{_when(run.began_us)}</p>",
        f"<h1>{escape(scenario.title)}</h1>",
        f'<p><span class="verdict {state}">{words}</span></p>',
        f"<p>{escape(scenario.about)}</p>" if scenario.about else "",
        _cards(report),
        _stories(report, set(excerpt)),
        _promises(report),
        _expectations(report),
        _plots(report),
        _times(report),
        _conflicts(report),
        _faults(report),
        _notes(report),
        _network(report),
        _log(report, excerpt),
        f"<h2>The scenario</h2><p>Run it again with <code>{escape(report.replay)}</code></p>",
        f"<pre>{escape(scenario.text)}</pre>",
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _when(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _at(report: Report, time_us: int | None) -> str:
    return "" if time_us is None else f"{report.seconds(time_us):.2f} s"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; one that begins with a digit is set to the right."""
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if cell[:1].isdigit() else ''}>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _cards(report: Report) -> str:
    run = report.run
    entries = sum(1 for _ in run.history.acknowledged())
    outcomes = run.history.outcomes()
    took_s = run.settled.took_s
    violated = sum(one.ruling is Ruling.BROKEN for one in report.promises)
    cards = [
        (f"{sum(one.ruling is Ruling.HELD for one in report.promises)}", "promises held"),
        (f"{violated}", "promises violated"),
        (f"{entries:,}", "acknowledged entries"),
        (f"{outcomes[Outcome.ACKNOWLEDGED] / report.clients_s:,.0f}/s", "requests acknowledged"),
        (f"{outcomes[Outcome.REFUSED]:,} / {outcomes[Outcome.UNKNOWN]:,}", "refused / without answer"),
        ("never" if took_s is None else f"{took_s:.1f} s", "until all sites were level, after the last fault"),
        (f"{sum(report.conflicts.values()):,}", "conflicts listed"),
        *([(f"{report.killed:,}", "processes ended by SIGKILL")] if report.killed else []),
        (f"{max(run.peak_rss_bytes.values(), default=0) / 2**20:,.0f} MiB", "most memory of a site"),
    ]
    items = "".join(f'<div class="card"><b>{value}</b><span>{escape(text)}</span></div>' for value, text in cards)
    return f'<div class="cards">{items}</div>'


def _stories(report: Report, in_excerpt: set[int]) -> str:
    failed = [one for one in report.expectations if not one.held]
    if not report.stories and not failed:
        return ""
    parts = ["<h2>What failed, and the shortest story of it</h2>"]
    parts += [f'<p class="violated"><b>{escape(one.what)}</b>: {escape(one.detail)}</p>' for one in failed]
    for story in report.stories:
        items = "".join(_story_line(report, line, in_excerpt) for line in story)
        parts.append(f'<div class="story"><ol>{items}</ol></div>')
    return "".join(parts)


def _story_line(report: Report, line: StoryLine, in_excerpt: set[int]) -> str:
    text = escape(line.text)
    if line.event is not None and line.event in in_excerpt:
        text = f'<a href="#e{line.event}">{text}</a>'
    kind = ' class="found"' if line.is_finding else ""
    return f'<li><span class="dim mono">{_at(report, line.time_us)}</span><span{kind}>{text}</span></li>'


def _promises(report: Report) -> str:
    rows = []
    for one in report.promises:
        checked = (
            ", ".join(f"{count:,} {what}" for what, count in one.checked.items()) or "nothing happened that it is about"
        )
        found = "".join(f"<br>{escape(report.tell(finding))}" for finding in one.findings[:FINDINGS_SHOWN_MAX])
        left = one.found - FINDINGS_SHOWN_MAX
        more = f"<br>and {left:,} more" if left > 0 else ""
        state = f'<span class="state {CSS_OF_RULING[one.ruling]}">{RULINGS[one.ruling]}</span>'
        what = f'<span>{escape(checked)}</span><span class="violated">{found}{more}</span>'
        rows.append((f'<b id="{one.promise}">{one.promise}</b>', escape(one.title), state, what))
    return "<h2>The promises</h2>" + _table(("", "promise", "", "what was checked, and how often"), rows)


def _expectations(report: Report) -> str:
    rows = [
        (
            f'<span class="state {"held" if one.held else "violated"}">{"yes" if one.held else "no"}</span>',
            escape(one.what),
            f"<span>{escape(one.detail)}</span>",
        )
        for one in report.expectations
    ]
    return "<h2>What else was expected</h2>" + _table(("", "that", "found"), rows)


def fault_spans(report: Report) -> Iterator[tuple[str, Span]]:
    """Each fault that was there: what it was done to, and when."""
    end_s = report.seconds(report.run.ended_us)
    for one in report.run.faults:
        if one.began_us is not None:
            began_s, ended_s = measures.fault_seconds(report.run, one)
            options = describe(one.fault.kind, one.fault.options)
            text = f"{one.fault.kind}: {one.fault.where} {options}"
            yield one.fault.kind, Span(began_s, end_s if ended_s is None else ended_s, "fault", text)


def _plots(report: Report) -> str:
    run = report.run
    axis = Axis(0.0, max(1.0, report.seconds(run.ended_us)))
    rows: dict[str, list[Span]] = {}
    for kind, span in fault_spans(report):
        rows.setdefault(kind, []).append(span)
    shaded = [span for spans in rows.values() for span in spans]
    modes = [
        (site, [Span(begin, end, state, f"{site} {state}") for begin, end, state in measures.mode_spans(run, site)])
        for site in run.scenario.cluster.sites
    ]
    states = sorted({span.kind for _, spans in modes for span in spans})
    key = "".join(f'<li><i class="key {escape(state)}"></i>{escape(state)}</li>' for state in states)
    lag = {f"{one} → {other}": points for (one, other), points in sorted(measures.lags(run).items())}
    rates = {outcome.value: points for outcome, points in measures.rates(run).items()}
    plots = [
        ("Faults", lanes("faults over time", axis, list(rows.items())) if rows else "<p>none</p>"),
        ("Modes", lanes("modes of the sites over time", axis, modes) + f'<ul class="legend">{key}</ul>'),
        ("How far each peer was behind", lines("lag of each link", "entries", axis, lag, shaded)),
        ("Requests", lines("requests per second by outcome", "per s", axis, rates, shaded)),
        ("Memory", lines("memory of each site", "MiB", axis, measures.memory(run), shaded)),
    ]
    return "<h2>What happened</h2>" + "".join(
        f'<h3>{escape(title)}</h3><div class="plot">{plot}</div>' for title, plot in plots
    )


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def _times(report: Report) -> str:
    detected = [(str(one.fault), escape(one.site), escape(one.by), _seconds(one.after_s)) for one in report.detections]
    recovered = [
        (
            str(one.fault),
            escape(one.kind),
            escape(one.site),
            "" if one.answers_s is None else _seconds(one.answers_s),
            _seconds(one.level_s),
        )
        for one in report.recoveries
    ]
    parts = ["<h2>Time to detect and to recover</h2>"]
    if detected:
        parts.append(_table(("fault", "site that was gone", "called Offline by", "after"), detected))
    else:
        parts.append('<p class="dim">No site was gone for so long that it would be called Offline.</p>')
    if recovered:
        parts.append("<br>" + _table(("fault", "kind", "site", "answers after", "keeps up again after"), recovered))
    return "".join(parts)


def _conflicts(report: Report) -> str:
    if not report.conflicts:
        return "<h2>Conflicts</h2><p>none</p>"
    rows = [(escape(kind), f"{count:,}") for kind, count in report.conflicts.most_common()]
    return "<h2>Conflicts</h2>" + _table(("kind", "how many"), rows)


def _faults(report: Report) -> str:
    rows = [
        (
            str(one.fault.number),
            f'<span title="{escape(KINDS[one.fault.kind].meaning, quote=True)}">{one.fault.kind}</span>',
            escape(one.fault.where),
            f"<span>{escape(describe(one.fault.kind, one.fault.options))}</span>",
            _at(report, one.began_us) or "not begun",
            _at(report, one.ended_us) or "not over",
        )
        for one in report.run.faults
    ]
    if not rows:
        return ""
    return "<h2>The timeline</h2>" + _table(("", "fault", "where", "how", "from", "to"), rows)


def _notes(report: Report) -> str:
    notes = report.run.notes
    rows = [
        (
            _at(report, note.time_us),
            escape(note.site),
            f'<span class="{"violated" if note.is_failure else ""}">{escape(note.text)}</span>',
        )
        for note in notes[:NOTES_MAX]
    ]
    more = f"<p>and {len(notes) - NOTES_MAX:,} more</p>" if len(notes) > NOTES_MAX else ""
    table = _table(("at", "site", "what"), rows)
    return f"<h2>What was done to the sites</h2><details><summary>{len(notes)} lines</summary>{table}{more}</details>"


def _network(report: Report) -> str:
    counters = report.run.counters
    names = list(next(iter(counters.values()), {}))
    rows = [(escape(link), *(f"{told[name]:,}" for name in names)) for link, told in counters.items()]
    table = _table(("direction", *(name.replace("_", " ") for name in names)), rows)
    return f"<h2>The network</h2><details><summary>what the proxies did</summary>{table}</details>"


def log_excerpt(report: Report) -> list[int]:
    """Which events the page shows, in order of time: those that a story needs, then errors, warnings, the rest."""
    events = report.run.events
    needed = {line.event for story in report.stories for line in story}
    rank = {"error": 1, "warning": 2}

    def order(i: int) -> tuple[bool, bool, int, int]:
        event = events[i]
        return i not in needed, event["event"].startswith("conflict"), rank.get(event.get("level", ""), 3), i

    return sorted(sorted(range(len(events)), key=order)[:LOG_LINES_MAX])


def _log(report: Report, excerpt: Sequence[int]) -> str:
    events = report.run.events
    left = len(events) - len(excerpt)
    more = f" {left:,} lines of less weight are left out." if left else ""
    rows = "".join(_log_line(report, i, events[i]) for i in excerpt)
    intro = f'<p class="dim">What the sites logged, in the order of their own clocks.{more}</p>'
    return f'<h2>The merged log</h2>{intro}<div class="log mono">{rows}</div>'


def _log_line(report: Report, number: int, event: dict[str, Any]) -> str:
    level = escape(str(event.get("level", "")))
    text = escape(event_text(event))
    at = _at(report, event["time_us"])
    return f'<div id="e{number}" class="{level}">{at:>9} {escape(str(event["site"])):<8} {text}</div>'
