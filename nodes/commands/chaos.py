"""`chaos`: break a cluster of real processes by a scenario, and judge what is left of its promises."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.promises import judge
from nodes.chaos.fault_kinds import KINDS, Needs, Target, options_text
from nodes.chaos.nemesis import random_scenario
from nodes.chaos.observing import observe
from nodes.chaos.page import report_page
from nodes.chaos.report import Report, make_report, report_json
from nodes.chaos.runner import CouldNotRun, run_scenario, why_skipped
from nodes.chaos.scenario import Scenario, find_scenario, shipped_scenarios
from nodes.chaos.terminal import print_report
from nodes.commands.common import EXIT_NO, EXIT_UNREACHABLE, echo_json, end, examples, json_option, run_async

MINUTES = 1.0
"""Of a random timeline: enough for a dozen faults."""
CODES = {"held": 0, "violated": EXIT_NO, "skipped": EXIT_UNREACHABLE, "not run": EXIT_UNREACHABLE}
"""What may become of a scenario, and the exit status that it means."""
PAGE_NAME, JSON_NAME, SCENARIO_NAME = "verdict.html", "verdict.json", "scenario.toml"


@click.command(
    epilog=examples(
        "claudefs-repl chaos --list",
        "claudefs-repl chaos kill-and-catch-up",
        "claudefs-repl chaos split-brain --show > my-scenario.toml    # begin one's own",
        "claudefs-repl chaos my-scenario.toml --html verdict.html --keep",
        "claudefs-repl chaos --random --seed 7 --minutes 2    # a timeline of the seed's",
    )
)
@click.argument("names", metavar="[NAME|FILE]...", nargs=-1)
@click.option("--list", "is_list", is_flag=True, help="Show the scenarios that come with the program.")
@click.option("--faults", "is_faults", is_flag=True, help="Show the faults that a scenario may have, and their values.")
@click.option(
    "--show", "is_show", is_flag=True, help="Print the scenario's file, to begin one's own with, and run nothing."
)
@click.option("--short", "is_short", is_flag=True, help="Run all that are tagged short.")
@click.option("--random", "is_random", is_flag=True, help="Draw the cluster, the workload and the faults from a seed.")
@click.option("--seed", type=click.IntRange(min=0), help="Of --random, or another one for a scenario's clients.")
@click.option(
    "--minutes", type=click.FloatRange(min=0.1, max=1440), default=MINUTES, show_default=True, help="Of --random."
)
@click.option("--power", is_flag=True, help="Of --random: loss of power too, which needs root.")
@click.option(
    "--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write the verdict as a page here."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write page, JSON and scenario of each run into a directory of its own here.",
)
@click.option("--keep", is_flag=True, help="Leave the cluster's directory there.")
@json_option
def chaos(
    names: tuple[str, ...],
    is_list: bool,
    is_faults: bool,
    is_show: bool,
    is_short: bool,
    is_random: bool,
    seed: int | None,
    minutes: float,
    power: bool,
    page: Path | None,
    output: Path | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Break a cluster of real sites on purpose, and judge its promises.

    A scenario says what the cluster is, what its clients do, which faults come when, and what must hold at the end. Sites
    run on this machine, in a temporary directory, on free ports, with proxies between them.

    Exit status: 0 every promise held, 1 one was violated or something expected did not come, 2 the scenario cannot be
    used, 3 it could not run or this machine does not permit it.
    """
    if is_list:
        _list(as_json=as_json)
        return
    if is_faults:
        _list_faults(as_json=as_json)
        return
    if is_random and (names or is_short):
        raise click.UsageError("--random goes with neither a scenario nor --short")
    if is_random:
        needs = [Needs.POWER] if power else []
        scenarios = [random_scenario(1 if seed is None else seed, minutes, needs=needs)]
    else:
        chosen = [*names, *(shipped_scenarios() if is_short else ())]
        scenarios = [find_scenario(name, seed=seed) for name in chosen]
        scenarios = [one for one in scenarios if one.name in names or not is_short or "short" in one.tags]
    if not scenarios:
        raise click.UsageError("name a scenario or a file, or give --short or --random; see --list")
    if is_show:
        for one in scenarios:
            click.echo(one.text)
        return
    if page is not None and len(scenarios) > 1:
        raise click.UsageError("--html is for one scenario; use --output for several")
    states = [_run(one, page, output, keep=keep, as_json=as_json) for one in scenarios]
    if len(states) > 1 and not as_json:
        told = ", ".join(f"{states.count(state)} {state}" for state in CODES if state in states)
        click.echo(f"\n{told}")
    # A violation counts more than what could not run. Who asks for whatever is short gets what the machine permits.
    counted = [state for state in states if state != "skipped" or not is_short] or states
    end(EXIT_NO if "violated" in states else max(CODES[state] for state in counted))


def _list(*, as_json: bool) -> None:
    scenarios = [find_scenario(name) for name in shipped_scenarios()]
    if as_json:
        echo_json(
            [
                {
                    "name": one.name,
                    "title": one.title,
                    "about": one.about,
                    "tags": list(one.tags),
                    "seconds": one.end_s,
                    "needs": [need.value for need in one.needs],
                }
                for one in scenarios
            ]
        )
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("name", "seconds", "shows"):
        table.add_column(title, justify="right" if title == "seconds" else "left", no_wrap=title == "name")
    for one in scenarios:
        needs = "".join(f"\n[yellow]needs {need.value}[/]" for need in one.needs)
        table.add_row(one.name, f"{one.end_s:.0f}", f"{one.title}{needs}")
    Console().print(table)


def _list_faults(*, as_json: bool) -> None:
    targets = {Target.SITES: "site or sites", Target.LINKS: "link or site", Target.CLUSTER: ""}
    if as_json:
        echo_json(
            [
                {
                    "fault": name,
                    "where": targets[kind.target],
                    "lasts": kind.lasts,
                    "meaning": kind.meaning,
                    "needs": kind.needs.value,
                    "options": options_text(name).splitlines(),
                }
                for name, kind in KINDS.items()
            ]
        )
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("fault", "done to", "for_s", "means, and takes"):
        table.add_column(title, no_wrap=title in ("fault", "done to"))
    for name, kind in KINDS.items():
        needs = f"\n[yellow]needs {kind.needs.value}[/]" if kind.needs.value else ""
        options = escape(options_text(name))
        more = f"\n[dim]{options}[/]" if options else ""
        table.add_row(name, targets[kind.target], "yes" if kind.lasts else "", f"{kind.meaning}{more}{needs}")
    Console().print(table)


def _run(scenario: Scenario, page: Path | None, output: Path | None, *, keep: bool, as_json: bool) -> str:
    """Run one scenario and tell the verdict; what became of it."""
    say = _say(as_json)
    say(f"{scenario.name}: {scenario.title}")
    skipped = run_async(why_skipped, scenario)
    if skipped:
        return _tell_not_run(scenario, skipped, "skipped", as_json=as_json)
    try:
        report = run_async(_judged_run, scenario, say, keep=keep)
    except CouldNotRun as error:
        return _tell_not_run(scenario, [str(error)], "not run", as_json=as_json)
    if as_json:
        echo_json(report_json(report))
    else:
        print_report(report, Console(highlight=False))
    _write(report, page, output, say)
    return "held" if report.held else "violated"


def _tell_not_run(scenario: Scenario, reasons: list[str], state: str, *, as_json: bool) -> str:
    if as_json:
        echo_json({"scenario": scenario.name, "title": scenario.title, "state": state, "reasons": reasons})
    for reason in reasons:
        click.echo(f"claudefs-repl: {scenario.name}: {reason}", err=True)
    return state


def _say(as_json: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        click.echo(text, err=as_json)

    return say


async def _judged_run(scenario: Scenario, say: Callable[[str], None], *, keep: bool) -> Report:
    directory = Path(tempfile.mkdtemp(prefix="claudefs-repl-chaos-"))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_interrupt_when_terminated)
            run = await run_scenario(scenario, directory, say)
            nursery.cancel_scope.cancel()
        verdicts: Any = await trio.to_thread.run_sync(lambda: judge(observe(run)))
        return make_report(run, verdicts)
    finally:
        if keep:
            say(f"kept in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


async def _interrupt_when_terminated() -> None:
    """SIGTERM is taken as Ctrl-C is: sites are stopped and disks unmounted before the end."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            raise KeyboardInterrupt


def _write(report: Report, page: Path | None, output: Path | None, say: Callable[[str], None]) -> None:
    """The files that were asked for.

    Raises:
        ConfigInvalid: one cannot be written.
    """
    scenario = report.run.scenario
    files: dict[Path, str] = {}
    if page is not None:
        files[page] = report_page(report)
    if output is not None:
        directory = output / f"{scenario.name}-{scenario.workload.seed}"
        files[directory / PAGE_NAME] = report_page(report)
        files[directory / JSON_NAME] = json.dumps(report_json(report), indent=1) + "\n"
        files[directory / SCENARIO_NAME] = scenario.text
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigInvalid([f"{path}: cannot be written: {error.strerror}"]) from error
        say(f"written: {path}")


COMMANDS: list[click.Command] = [chaos]
