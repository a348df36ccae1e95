"""When a starting site has caught up: what it waits for, and what will never come."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog import get_logger

from claudefs_repl.failover import SiteMode
from claudefs_repl.incarnations import Incarnations
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.topology import SiteConfig
from nodes.catch_up import has_caught_up
from nodes.peers import PeerRecord
from nodes.write_gate import WriteGate

OWN, BETA, LATER = (JournalId(SiteId(i), Incarnation(n)) for i, n in ((1, 1), (2, 2), (2, 3)))


class Alpha:
    """A starting site that has applied its own journal and (4, 4) of beta's."""

    def __init__(self):
        self.own = SimpleNamespace(journal=OWN, tails=(5, 5), shard_count=2)
        self.incarnations = Incarnations(OWN, {BETA.origin: BETA.incarnation})
        self.applied = {OWN: (5, 5), BETA: (4, 4)}
        self.beta = PeerRecord(SiteConfig("beta", SiteId(2), "127.0.0.2", 2, Path("beta")))
        self.gate = WriteGate("alpha", SiteMode.STANDBY_READ_ONLY)

    def hear(self, tails, received):
        """A pong, the first or a later one."""
        if self.beta.first_tails is None:
            self.beta.first_tails, self.beta.first_received = tails, received
        self.beta.note_all(received=received, applied={}, told={})

    def has_caught_up(self):
        recovered = SimpleNamespace(
            journals=SimpleNamespace(own=self.own),
            incarnations=self.incarnations,
            store=SimpleNamespace(applied=self.applied),
        )
        return has_caught_up(recovered, [self.beta], self.gate, get_logger())


@pytest.fixture
def alpha():
    return Alpha()


def test_a_site_waits_for_what_its_peers_told_at_first(alpha):
    """What is written later is not waited for."""
    alpha.hear({BETA: (5, 4)}, {BETA: (5, 4)})
    assert not alpha.has_caught_up()
    alpha.hear({BETA: (9, 9)}, {BETA: (9, 9)})
    alpha.applied[BETA] = (5, 4)
    assert alpha.has_caught_up()


def test_what_a_peer_told_of_a_journal_that_it_has_closed_since_is_not_waited_for(alpha):
    """A peer that is made anew writes again what nobody had: under the old numbers it never comes."""
    alpha.hear({BETA: (7, 4)}, {BETA: (7, 4)})
    alpha.incarnations.learn(LATER.origin, LATER.incarnation)
    alpha.hear({LATER: (3, 0)}, {BETA: (5, 4), LATER: (3, 0)})
    assert not alpha.has_caught_up()
    assert "site beta holds of the former journal 2:" in alpha.gate.reasons[0]
    alpha.applied[BETA] = (5, 4)
    assert alpha.has_caught_up()
    assert not alpha.gate.reasons


def test_what_nobody_may_take_of_a_former_journal_is_not_waited_for(alpha):
    """Its stamps are too far ahead: it may come in a year, or never, if whoever holds it is made anew."""
    alpha.incarnations.learn(LATER.origin, LATER.incarnation)
    alpha.hear({LATER: (0, 0)}, {BETA: (7, 4), LATER: (0, 0)})
    assert not alpha.has_caught_up()
    alpha.beta.former_beyond.add(BETA)
    assert alpha.has_caught_up()
    assert not alpha.gate.reasons


@pytest.mark.parametrize("told", [True, False])
def test_what_is_gone_of_the_own_journal_is_missed(alpha, told):
    """Whether a peer has it or was only told of it: a site that lacks it must not write."""
    alpha.hear({BETA: (4, 4)}, {BETA: (4, 4)})
    alpha.beta.note_all(received={} if told else {OWN: (6, 0)}, applied={}, told={OWN: (6, 0)} if told else {})
    assert not alpha.has_caught_up()
