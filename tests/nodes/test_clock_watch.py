"""The clock watch: whose clock is wrong, and what follows for this site's clients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from claudefs_repl.error import NotWritable
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import SiteConfig
from nodes.clock_watch import ClockWatch
from nodes.events import make_logger
from nodes.peers import PeerRecord
from nodes.runtime import SystemClock
from nodes.write_gate import WriteGate

LIMIT_US = 300_000_000
HOUR_US = 3_600_000_000


class Alpha:
    """A site's clock watch, with two peers."""

    def __init__(self, directory):
        self.peers = [
            PeerRecord(SiteConfig(name, SiteId(i), f"127.0.0.{i}", i, Path(name)))
            for i, name in enumerate(("beta", "gamma"), 2)
        ]
        self.gate = WriteGate("alpha", SiteMode.ACTIVE_READ_WRITE)
        self.path = directory / "events.jsonl"
        logger = make_logger(self.path, "alpha", SystemClock())
        self.watch = ClockWatch(peers=self.peers, limit_us=LIMIT_US, gate=self.gate, logger=logger)

    def hear(self, *offsets_us):
        """What each peer's clock is ahead; None is a peer that does not answer now."""
        for peer, offset_us in zip(self.peers, offsets_us, strict=True):
            peer.mode_told = None if offset_us is None else SiteMode.ACTIVE_READ_WRITE.value
            if offset_us is not None:
                peer.clock_offset_us = offset_us
        self.watch.compare()

    def events(self):
        return [json.loads(line)["event"] for line in self.path.read_text().splitlines()]


@pytest.fixture
def alpha(tmp_path):
    return Alpha(tmp_path)


def test_a_clock_that_most_peers_contradict_closes_the_gate_and_opens_it_again(alpha):
    """The refusal says how wrong the clock is, on which side, and what to do; both ends are told once."""
    alpha.gate.check_write()
    for _ in range(2):
        alpha.hear(-HOUR_US, -HOUR_US)
    with pytest.raises(
        NotWritable, match=r"3,600\.0 s ahead of most of its peers' clocks.*300 s are allowed; set the clock"
    ):
        alpha.gate.check_write()
    assert not alpha.watch.is_in_bounds
    for _ in range(2):
        alpha.hear(0, 0)
    alpha.gate.check_write()
    assert alpha.watch.is_in_bounds
    assert alpha.events() == ["clock_out_of_bounds", "clock_in_bounds"]


def test_one_wrong_peer_of_two_closes_nothing(alpha):
    """A single peer with another time is that peer's fault."""
    alpha.hear(HOUR_US, 0)
    alpha.gate.check_write()
    assert alpha.watch.is_in_bounds


def test_a_wrong_clock_stays_wrong_while_no_peer_answers(alpha):
    """A partition neither opens the gate nor, when no peer was ever heard, closes it."""
    alpha.hear(None, None)
    assert alpha.watch.is_in_bounds
    alpha.hear(HOUR_US, HOUR_US)
    alpha.hear(None, None)
    assert not alpha.watch.is_in_bounds
    with pytest.raises(NotWritable, match="behind most of its peers"):
        alpha.gate.check_write()
