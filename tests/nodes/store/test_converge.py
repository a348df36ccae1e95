"""Long random histories of two to four sites against the model: trees, conflict lists and digests.

`make converge` runs a million operations; CLAUDEFS_REPL_OPERATIONS says how many, CLAUDEFS_REPL_SEED where they begin.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.nodes.store.active_sites import ActiveSites

OPERATIONS = int(os.environ.get("CLAUDEFS_REPL_OPERATIONS", "20000"))
SEED = int(os.environ.get("CLAUDEFS_REPL_SEED", "0"))
PARTS = 8
"""So that several workers share them."""


def act(sites: ActiveSites, steps: int) -> None:
    """Let the sites act at random."""
    chance = sites.chance
    deafness = chance.choice((0.05, 0.2, 0.5))
    for _ in range(steps):
        site = chance.choice(sites.sites)
        what = chance.random()
        if what < deafness:
            sites.write(site)
        elif what < 0.9:
            sites.write(site)
            sites.hear(site)
        elif what < 0.96:
            sites.forget(site)
        elif what < 0.97:
            site.restart()
        elif what < 0.98:
            sites.rebuild(site)
        else:
            sites.begin_journal(site, is_lost=chance.randrange(2) == 1)


@pytest.mark.parametrize("part", range(PARTS))
def test_long_histories_agree_with_the_model(memory_site, part):
    """All operations in any order, duplicates, restarts, rebuilds, new journals: one tree, one list, one digest."""
    operations, seed = 0, SEED + part
    while operations < OPERATIONS // PARTS:
        chance = random.Random(seed)
        sites = ActiveSites(memory_site, chance, chance.randint(2, 4))
        try:
            act(sites, chance.randint(10, 60))
            sites.check()
        except AssertionError as error:
            command = f"CLAUDEFS_REPL_SEED={seed - part} .venv/bin/python -m pytest {__file__} -k 'model[{part}]'"
            raise AssertionError(f"replay with: {command}") from error
        operations += sites.operations
        seed += PARTS
