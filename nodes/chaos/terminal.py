"""The verdict on a terminal: the promises, what was expected, the times, and the story of what failed."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from claudefs_repl.observations import Outcome
from claudefs_repl.verdict import Ruling
from nodes.chaos.report import RULINGS, Report

STYLES = {Ruling.HELD: "green", Ruling.BROKEN: "bold red", Ruling.NOT_EXERCISED: "yellow"}
FINDINGS_SHOWN_MAX = 3
TIMES_SHOWN_MAX = 12


def print_report(report: Report, console: Console) -> None:
    """The whole verdict."""
    run = report.run
    console.print(_promises(report))
    for one in report.expectations:
        mark = "[green]yes[/]" if one.held else "[bold red] no[/]"
        console.print(f" {mark}  {escape(one.what)}: {escape(one.detail)}", highlight=False)
    outcomes = run.history.outcomes()
    entries = sum(1 for _ in run.history.acknowledged())
    requests = ", ".join(f"{outcomes[outcome]:,} {outcome.value}" for outcome in Outcome)
    console.print(f"\nrequests: {requests}; {entries:,} entries acknowledged", highlight=False)
    if report.killed:
        console.print(f"processes ended by SIGKILL: {report.killed:,}", highlight=False)
    if report.conflicts:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.conflicts.most_common())
        console.print(f"conflicts: {kinds}", highlight=False)
    _print_times(report, console)
    _print_stories(report, console)
    state = "[bold green]every promise held[/]" if report.held else "[bold red]violated[/]"
    console.print(f"\n[bold]{escape(run.scenario.title)}[/]: {state}", highlight=False)
    if not report.held:
        console.print(f"run it again with: {escape(report.replay)}", highlight=False)


def _promises(report: Report) -> Table:
    table = Table(title=None, pad_edge=False, box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for one in report.promises:
        checked = ", ".join(f"{count:,} {what}" for what, count in one.checked.items())
        lines = [escape(one.title), f"[dim]{escape(checked or 'nothing happened that it is about')}[/]"]
        lines += [f"[red]{escape(report.tell(finding))}[/]" for finding in one.findings[:FINDINGS_SHOWN_MAX]]
        if one.found > FINDINGS_SHOWN_MAX:
            lines.append(f"[red]and {one.found - FINDINGS_SHOWN_MAX:,} more[/]")
        table.add_row(one.promise, f"[{STYLES[one.ruling]}]{RULINGS[one.ruling]}[/]", "\n".join(lines))
    return table


def _print_times(report: Report, console: Console) -> None:
    for one in report.detections[:TIMES_SHOWN_MAX]:
        after = "never" if one.after_s is None else f"after {one.after_s:.2f} s"
        console.print(f"fault {one.fault}: {one.by} called {one.site} Offline {after}", highlight=False)
    for back in report.recoveries[:TIMES_SHOWN_MAX]:
        answers = "" if back.answers_s is None else f"answered after {back.answers_s:.2f} s, "
        level = "did not keep up again" if back.level_s is None else f"kept up again after {back.level_s:.2f} s"
        console.print(f"fault {back.fault} ({back.kind}): {back.site} {answers}{level}", highlight=False)


def _print_stories(report: Report, console: Console) -> None:
    for story in report.stories:
        console.print("\n[bold]the shortest story[/]")
        for line in story:
            at = "" if line.time_us is None else f"{report.seconds(line.time_us):.2f} s"
            style = "bold red" if line.is_finding else ""
            console.print(f"{at:>9}  {escape(line.text)}", style=style, highlight=False)
