"""State is a function of the set of entries folded: against a model that reads the rules aloud, entry by entry."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.nodes.store.history import (
    Forger,
    Model,
    act,
    check_all,
    deliver_at_random,
    facts_of,
    forge,
    forgeries,
    local_actions,
    tree_of,
)

BRISK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@BRISK
@given(actions=local_actions, seed=st.integers(0, 1 << 32))
def test_sites_that_wrote_and_exchanged_anything_agree_with_the_model(memory_site, actions, seed):
    """Whatever three sites do and hear in between, with all entries they hold the tree that the rules tell."""
    sites = [memory_site(number) for number in (1, 2, 3)]
    for action in actions:
        act(sites, action)
    check_all(sites, random.Random(seed), memory_site)
    for site in sites:
        site.close()


@BRISK
@given(actions=forgeries, seed=st.integers(0, 1 << 32))
def test_forged_journals_converge_too(memory_site, actions, seed):
    """Entries with any stamps, targets and `seen` that pass the checks on single entries have one outcome."""
    forgers = [Forger(1), Forger(2)]
    for action in actions:
        forge(forgers, action)
    chance = random.Random(seed)
    facts = [
        fact for forger in forgers for blocks in forger.blocks.values() for fact in facts_of(forger.journal, blocks)
    ]
    expected = Model(facts).tree()
    dumps = []
    for _ in range(3):
        site = memory_site(99)
        deliver_at_random(site, {forger.journal: forger.blocks for forger in forgers}, chance)
        assert tree_of(site.view) == expected
        dumps.append(site.dump())
        site.close()
    assert dumps[0] == dumps[1] == dumps[2]
