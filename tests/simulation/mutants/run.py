"""`make mutants`: plants each known bug in a copy and counts the seeds until the simulation notices it.

Several mutants are tried at a time, each in a process of its own; they are told in the order of the table.
The unmutated code goes first: what it violates itself proves nothing about a mutant. The exit status is 0 if every mutant
was caught, 1 if one survived, 2 if the unmutated code did not pass.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click

from tests.simulation.mutants.plant import plant
from tests.simulation.mutants.table import MUTANTS, Mutant

SEEDS_MAX = 200
CLEAN_SEEDS = 20
"""Of the unmutated code: more than most mutants need."""
SIMULATION = "tests.simulation.run"
STORY_CHARS = 240


@dataclass(frozen=True, slots=True)
class Catch:
    """What became of one mutant.

    Attributes:
        seeds: how many were run, the last of which caught it if any did.
        is_caught: whether one did.
        story: the first violation, or how a run failed to tell any.
    """

    name: str
    promise: str
    breaks: str
    seeds: int
    is_caught: bool
    story: str


def try_mutant(
    mutant: Mutant | None,
    *,
    first: int = 1,
    seeds_max: int = SEEDS_MAX,
    module: str = SIMULATION,
    extra: Callable[[Path], None] = lambda directory: None,
) -> Catch:
    """Run seeds over a copy with a mutant's bug, or without any, until one finds something.

    Args:
        mutant: None for the code as it is.
        first: the first seed.
        seeds_max: how many are tried.
        module: it has `run_seed(seed)`, which returns something with `violations`.
        extra: puts more into the copy.
    """
    seeds, story = 0, ""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        directory = Path(name)
        plant(mutant, directory)
        extra(directory)
        command = [sys.executable, "-m", "tests.simulation.mutants.hunt", module, str(first), str(seeds_max)]
        environment = {**os.environ, "PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"}
        with subprocess.Popen(
            command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as hunting:
            try:
                assert hunting.stdout is not None
                for line in hunting.stdout:
                    told = json.loads(line)
                    seeds += 1
                    story = next(iter(told["violations"]), "")
            except BaseException:
                hunting.kill()
                raise
            errors = "" if hunting.stderr is None else hunting.stderr.read()
        if hunting.returncode:
            last = next(iter(errors.strip().splitlines()[-1:]), "")
            story = f"seed {first + seeds} ended with status {hunting.returncode}: {last}"
    known = mutant or Mutant("unmutated", "", "", "", "nothing", "")
    is_caught = bool(story) and not hunting.returncode
    return Catch(known.name, known.promise, known.breaks, seeds, is_caught, " ".join(story.split())[:STORY_CHARS])


def try_all(mutants: Sequence[Mutant], processes: int, *, first: int, seeds_max: int) -> Iterator[Catch]:
    """Try mutants, so many at a time; what became of them comes in their order."""
    try_one = partial(try_mutant, first=first, seeds_max=seeds_max)
    if processes <= 1:
        yield from map(try_one, mutants)
        return
    with multiprocessing.get_context("spawn").Pool(processes, initializer=_end_in_order) as pool:
        yield from pool.imap(try_one, mutants)


def _end_in_order() -> None:
    """A campaign that is stopped takes the hunts and their copies with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _line(catch: Catch) -> str:
    outcome = f"{catch.seeds:4d} seeds" if catch.is_caught else f"SURVIVED {catch.seeds} seeds"
    return f"{catch.name:26s} {outcome:18s} {catch.promise:4s} {catch.story or catch.breaks}"


@click.command()
@click.option("--seeds", "seeds_max", default=SEEDS_MAX, show_default=True, help="The most that each mutant is given.")
@click.option("--first", default=1, show_default=True, help="The first seed.")
@click.option("--only", multiple=True, help="The name of a mutant; may be given again.")
@click.option("--processes", default=min(2, os.cpu_count() or 1), show_default=True, help="Mutants at a time.")
@click.option("--clean", default=CLEAN_SEEDS, show_default=True, help="Seeds of the unmutated code, 0 for none.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout at the end.")
@click.option("--list", "as_list", is_flag=True, help="List the mutants, run nothing.")
def main(
    seeds_max: int, first: int, only: Sequence[str], processes: int, clean: int, as_json: bool, as_list: bool
) -> None:
    """Plant known bugs one by one, and tell how many seeds the simulation needed to notice each."""
    unknown = sorted(set(only) - {mutant.name for mutant in MUTANTS})
    if unknown:
        raise click.UsageError(f"no such mutant: {', '.join(unknown)}; see --list")
    chosen = [mutant for mutant in MUTANTS if not only or mutant.name in only]
    if as_list:
        for mutant in chosen:
            click.echo(f"{mutant.name:26s} {mutant.promise:4s} {mutant.path}: {mutant.breaks}")
        return
    if clean:
        unmutated = try_mutant(None, first=first, seeds_max=clean)
        click.echo(f"unmutated: {unmutated.story or f'{unmutated.seeds} seeds, nothing found'}", err=as_json)
        if unmutated.story:
            sys.exit(2)
    catches = []
    for catch in try_all(chosen, processes, first=first, seeds_max=seeds_max):
        catches.append(catch)
        click.echo(_line(catch), err=as_json)
    survivors = [catch.name for catch in catches if not catch.is_caught]
    if as_json:
        click.echo(json.dumps({"mutants": [asdict(catch) for catch in catches], "survivors": survivors}, indent=1))
    most = max((catch.seeds for catch in catches if catch.is_caught), default=0)
    told = f"{len(catches) - len(survivors)} of {len(catches)} mutants were caught, within {most} seeds"
    click.echo(f"{told}; survivors: {', '.join(survivors) or 'none'}", err=as_json)
    sys.exit(bool(survivors))


if __name__ == "__main__":
    _end_in_order()
    main()
