"""The watch on former journals: what only a peer's view has closes the gate, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from claudefs_repl.error import NotWritable
from claudefs_repl.failover import SiteMode
from claudefs_repl.incarnations import Incarnations
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.topology import SiteConfig
from nodes.conduit_sender import HELD_BACK_S
from nodes.events import make_logger
from nodes.former_watch import PATIENCE_S, FormerWatch
from nodes.peers import PeerRecord
from nodes.runtime import SystemClock
from nodes.write_gate import WriteGate

OWN, FORMER, CURRENT = (JournalId(SiteId(i), Incarnation(n)) for i, n in ((1, 1), (3, 3), (3, 4)))


class Alpha:
    """A site's watch, with one peer of which it has a former journal up to (2, 2)."""

    def __init__(self, directory):
        self.received = {FORMER: (2, 2)}
        self.peer = PeerRecord(SiteConfig("beta", SiteId(2), "127.0.0.2", 2, Path("beta")), inbound_connected=True)
        self.gate = WriteGate("alpha", SiteMode.ACTIVE_READ_WRITE)
        self.path = directory / "events.jsonl"
        self.watch = FormerWatch(
            journals=SimpleNamespace(received=lambda: self.received, own=SimpleNamespace(shard_count=2)),
            incarnations=Incarnations(OWN, {CURRENT.origin: CURRENT.incarnation}),
            peers=[self.peer],
            gate=self.gate,
            logger=make_logger(self.path, "alpha", SystemClock()),
        )

    def look(self, *times_s):
        for time_s in times_s:
            self.watch.compare(time_s)

    def events(self):
        return [json.loads(line)["event"] for line in self.path.read_text().splitlines()]


@pytest.fixture
def alpha(tmp_path):
    return Alpha(tmp_path)


def test_what_nobody_sends_closes_the_gate_until_it_is_here(alpha):
    """The refusal says what is lacking and what to do, once the peer has had its time."""
    alpha.peer.received = {FORMER: (5, 2)}
    alpha.look(0, PATIENCE_S - 1)
    alpha.gate.check_write()
    alpha.look(PATIENCE_S, PATIENCE_S + 1)
    with pytest.raises(NotWritable, match=r"site beta holds of the former journal 3:.*bootstrap alpha --from beta"):
        alpha.gate.check_write()
    assert alpha.events() == ["bootstrap_needed"]
    alpha.received = {FORMER: (5, 2)}
    alpha.look(PATIENCE_S + 2)
    alpha.gate.check_write()


@pytest.mark.parametrize("received", [{FORMER: (2, 1)}, {CURRENT: (5, 5)}, {OWN: (9, 9)}, {}])
def test_what_is_here_or_comes_from_its_origin_is_not_waited_for(alpha, received):
    """Only of a former journal a peer may have more for good."""
    alpha.peer.received = received
    alpha.look(0, 2 * PATIENCE_S)
    alpha.gate.check_write()


def test_as_long_as_something_comes_or_the_peer_is_out_of_reach_nothing_is_closed(alpha):
    """A slow link delivers in the end, and so may one that is cut."""
    alpha.peer.received = {FORMER: (5, 2)}
    alpha.look(0)
    alpha.received = {FORMER: (3, 2)}
    alpha.look(PATIENCE_S)
    alpha.gate.check_write()
    alpha.peer.inbound_connected = False
    alpha.look(3 * PATIENCE_S)
    alpha.peer.inbound_connected = True
    alpha.look(4 * PATIENCE_S, 5 * PATIENCE_S - 1)
    alpha.gate.check_write()


def test_what_is_sent_and_refused_here_is_not_what_nobody_sends(alpha):
    """A batch that this site refuses, for its stamps or for want of room, comes again after a while."""
    alpha.peer.received = {FORMER: (5, 2)}
    alpha.look(0)
    for offered_s in (20, 20 + HELD_BACK_S):
        alpha.peer.former_offered_s[FORMER] = offered_s
        alpha.look(offered_s + HELD_BACK_S + PATIENCE_S - 1)
    alpha.gate.check_write()
    alpha.look(20 + 2 * HELD_BACK_S + PATIENCE_S)
    with pytest.raises(NotWritable, match="nobody sends"):
        alpha.gate.check_write()
