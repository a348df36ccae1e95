"""`bench`: the figures of the README, measured here and now on real processes."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from nodes.commands.bench_apply import measure_applying
from nodes.commands.bench_files import measure_large_file, measure_small_files
from nodes.commands.bench_journal import measure_appends, measure_drain, measure_live
from nodes.commands.common import echo_json, json_option, run_async
from nodes.commands.figures import Figure, Scale
from nodes.commands.lab import file_system_of
from nodes.commands.remote import first_cause

Say = Callable[[str], None]
PARTS: dict[str, Callable[[Path, Scale], Awaitable[list[Figure]]]] = {
    "appends": measure_appends,
    "drain": measure_drain,
    "apply": measure_applying,
    "live": measure_live,
    "small-files": measure_small_files,
    "large-file": measure_large_file,
}
FULL = Scale(
    append_s=5.0,
    drain_entries=200_000,
    apply_depths=(10_000, 100_000, 1_000_000),
    live_entries_per_s=5_000,
    live_s=20.0,
    small_files=10_000,
    large_bytes=1 << 30,
)
QUICK = Scale(
    append_s=0.5,
    drain_entries=10_000,
    apply_depths=(1_000, 10_000),
    live_entries_per_s=1_000,
    live_s=2.0,
    small_files=300,
    large_bytes=16 << 20,
)
TABLE_WIDTH = 132
"""Columns where there is no terminal that tells its own width."""
_IN_MEMORY = ("tmpfs", "ramfs")


@click.command()
@click.option("--quick", is_flag=True, help="A small fraction of everything: whether it works, not how fast it is.")
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Only this part; may be repeated.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where the temporary clusters are made; it decides which disk is measured  [default: the system's]",
)
@json_option
def bench(quick: bool, only: tuple[str, ...], directory: Path | None, as_json: bool) -> None:
    """Measure durable appends, backlog drain, applying, live replication delay, put and get, memory and CPU time.

    Clusters of real processes run for the time of the measurement, in a temporary directory and on free ports.

    \b
    Examples:
      claudefs-repl bench
      claudefs-repl bench --only drain --json
      claudefs-repl bench --quick
    """
    parent = directory if directory is not None else Path(tempfile.gettempdir())
    scale = QUICK if quick else FULL
    machine = describe_machine(parent)
    if machine["file_system"] in _IN_MEMORY:
        click.echo(
            f"{parent} is in memory ({machine['file_system']}): nothing here waits for a disk; use --dir", err=True
        )
    results: dict[str, list[Figure]] = {}
    for name in only or PARTS:
        click.echo(f"measuring {name} ...", err=True)
        results[name] = run_async(_unwrapped, PARTS[name], parent, scale)
    if as_json:
        figures = {name: {figure.name: figure.value for figure in found} for name, found in results.items()}
        echo_json({"machine": machine, "quick": quick, "results": figures})
    else:
        _print_table(machine, results)


COMMANDS: list[click.Command] = [bench]


async def _unwrapped(
    measure: Callable[[Path, Scale], Awaitable[list[Figure]]], parent: Path, scale: Scale
) -> list[Figure]:
    try:
        return await measure(parent, scale)
    except BaseExceptionGroup as group:
        raise first_cause(group) from group


def describe_machine(directory: Path) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "trio": trio.__version__,
        "file_system": file_system_of(directory),
    }


def _print_table(machine: dict[str, Any], results: dict[str, list[Figure]]) -> None:
    table = Table(title=", ".join(f"{key} {value}" for key, value in machine.items()))
    table.add_column("measured")
    table.add_column("value", justify="right")
    table.add_column("what it is")
    for part, figures in results.items():
        table.add_section()
        table.add_row(f"[bold]{part}[/bold]", "", "")
        for figure in figures:
            table.add_row(figure.name, figure.text, figure.meaning)
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    console.print(table)
