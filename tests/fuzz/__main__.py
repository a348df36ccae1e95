"""`python -m tests.fuzz`: fuzz every target, or some, from a seed; or run one stored input again."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from tests.fuzz.engine import CRASH, ROOT, Campaign, Tracer, distil, file_name, judge
from tests.fuzz.targets import TARGETS

ADDRESS_SPACE_MAX = 8 << 30
"""An input that asks for more memory than this ends in an error here, instead of ending the machine."""
KEPT_BYTES_MAX = 1024
KEPT_FILES_MAX = 16
"""Of each target, what `--keep` writes: small enough to be read through by every `make test`."""


@click.command()
@click.option("--minutes", type=float, default=5.0, show_default=True, help="For all targets together.")
@click.option("--runs", type=int, help="Runs of each target, instead of a time: then one seed gives one result.")
@click.option("--seed", type=int, help="Default: a new one, which is printed.")
@click.option("--target", "names", multiple=True, type=click.Choice(sorted(TARGETS)), help="Default: all.")
@click.option(
    "--keep", is_flag=True, help="Put the inputs that reach most into the corpus, in the place of what is there."
)
@click.option("--replay", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Run one stored input.")
def main(
    minutes: float, runs: int | None, seed: int | None, names: tuple[str, ...], keep: bool, replay: Path | None
) -> None:
    """Fuzz the decoders; the exit status is 1 if any broke what it promises."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_MAX, ADDRESS_SPACE_MAX))
    if replay is not None:
        sys.exit(_replay(replay))
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    chosen = [TARGETS[name] for name in names or TARGETS]
    click.echo(f"seed {seed}, {len(chosen)} targets")
    faults = 0
    for target in chosen:
        campaign = Campaign(target, seed)
        campaign.fuzz(_limit(runs, minutes * 60 / len(chosen)))
        reached, found = len(campaign.reached), len(campaign.pool)
        click.echo(f"{target.name:18} {campaign.runs:9,} runs {reached:7,} places {found:5,} inputs", nl=False)
        click.echo(f"  {len(campaign.faults)} FAULTS" if campaign.faults else "")
        for data, fault in campaign.faults.values():
            faults += 1
            path = target.corpus / (CRASH + file_name(data))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            where = path.relative_to(ROOT)
            click.echo(f"\n{fault.story}\n{len(data)} bytes in {where}; again with:\n    make fuzz REPLAY={where}\n")
        if keep:
            _keep(campaign)
    sys.exit(1 if faults else 0)


def _limit(runs: int | None, seconds: float) -> Callable[[int], bool]:
    if runs is not None:
        return lambda done: done < runs
    end_s = time.monotonic() + seconds
    return lambda done: time.monotonic() < end_s


def _keep(campaign: Campaign) -> None:
    target = campaign.target
    inputs = [data for data in campaign.pool if data not in target.seeds()]
    chosen = distil(target, inputs, bytes_max=KEPT_BYTES_MAX, files_max=KEPT_FILES_MAX)
    target.corpus.mkdir(parents=True, exist_ok=True)
    for path in target.corpus.iterdir():
        if not path.name.startswith(CRASH):
            path.unlink()
    for data in chosen:
        (target.corpus / file_name(data)).write_bytes(data)


def _replay(path: Path) -> int:
    target = TARGETS.get(path.resolve().parent.name)
    if target is None:
        click.echo(f"{path}: its directory is to be the name of a target: {', '.join(sorted(TARGETS))}", err=True)
        return 2
    data = path.read_bytes()
    outcome = judge(target, data, Tracer())
    click.echo(f"{target.name}: {len(data)} bytes, {outcome.steps} steps, {outcome.peak_bytes} bytes at the peak")
    if outcome.fault is not None:
        click.echo(outcome.fault.story)
    return 0 if outcome.fault is None else 1


if __name__ == "__main__":
    main()
