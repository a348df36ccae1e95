"""Active sites as a state machine: hypothesis chooses who acts and in what order, and makes what fails small."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.nodes.store.active_sites import ActiveSites

EXAMPLES = int(os.environ.get("CLAUDEFS_REPL_EXAMPLES", "60"))
STEPS = 40
SITES_MAX = 4
WHO = st.integers(0, SITES_MAX - 1)


@pytest.fixture
def machine(memory_site):
    """The machine over sites in memory."""

    class Machine(RuleBasedStateMachine):
        sites: ActiveSites | None = None

        @initialize(chance=st.randoms(use_true_random=False), count=st.integers(2, SITES_MAX))
        def begin(self, chance, count):
            self.sites = ActiveSites(memory_site, chance, count)

        def of(self, who):
            return self.sites.sites[who % len(self.sites.sites)]

        @rule(who=WHO)
        def write(self, who):
            self.sites.write(self.of(who))

        @rule(who=WHO, other=WHO)
        def write_at_two(self, who, other):
            self.sites.write(self.of(who))
            self.sites.write(self.of(other))

        @rule(who=WHO)
        def hear(self, who):
            self.sites.hear(self.of(who))

        @rule(who=WHO)
        def hear_again(self, who):
            self.sites.hear_again(self.of(who))

        @rule(who=WHO)
        def forget(self, who):
            self.sites.forget(self.of(who))

        @rule(who=WHO)
        def restart(self, who):
            self.of(who).restart()

        @rule(who=WHO)
        def rebuild(self, who):
            self.sites.rebuild(self.of(who))

        @rule(who=WHO, is_lost=st.booleans())
        def begin_journal(self, who, is_lost):
            self.sites.begin_journal(self.of(who), is_lost=is_lost)

        def teardown(self):
            if self.sites is not None:
                self.sites.check()

    return Machine


def test_whatever_active_sites_do_they_agree_with_the_model(machine):
    """Any interleaving of writes, deliveries, forgetting, restarts, rebuilds and new journals ends in the model's state."""
    test = machine.TestCase
    test.settings = settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
    )
    test("runTest").runTest()
