"""Hunting: runs seeds over the code in the current directory until one of them is violated. Started by `run`.

Writes one JSON object for each seed on a line of its own: seed, and what was violated. A run that raises ends the hunt: the
simulation has to tell what is wrong with the code under test, or the mutant does not count as noticed.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nodes

SEED_CPU_S_MAX = 120.0
"""A run that takes so much is in a loop: virtual time does not pass in it. Ordinary ones take a few seconds."""

SEED_CPU_S_AGAIN = 5.0
"""What is told of that may be lost, or end one loop of several: it is told again after so much."""


class SeedHangs(BaseException):
    """A run does not come to its end; no `except Exception` of the code under test must stop it."""


def _interrupt(*_: object) -> None:
    raise SeedHangs(f"no end after {SEED_CPU_S_MAX:.0f} s of processor time")


def hunt(module: str, first: int, count: int) -> Iterator[dict[str, Any]]:
    """Run seeds, one after another, up to the first that finds something."""
    run_seed = importlib.import_module(module).run_seed
    signal.signal(signal.SIGVTALRM, _interrupt)
    for seed in range(first, first + count):
        signal.setitimer(signal.ITIMER_VIRTUAL, SEED_CPU_S_MAX, SEED_CPU_S_AGAIN)
        try:
            violations = list(map(str, run_seed(seed).violations))
        except (SeedHangs, Exception) as error:
            violations = [f"{type(error).__name__}: {error}"]
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        yield {"seed": seed, "violations": violations}
        if violations:
            return


def main() -> None:
    """`hunt MODULE FIRST COUNT`."""
    module, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    here = Path.cwd()
    assert Path(nodes.__file__).is_relative_to(here), f"{nodes.__file__} is not the copy in {here}"
    for line in hunt(module, first, count):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
