"""The health prober against a peer that a test plays, on a clock that jumps."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from claudefs_repl.error import PeerRefused, ProtocolViolation
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import JournalId
from claudefs_repl.topology import SiteConfig
from nodes.events import make_logger_onto
from nodes.health_prober import DIAL_PAUSE_MAX_S, SelfView, run_health_prober
from nodes.peers import PeerRecord
from nodes.runtime import SystemClock
from protocol.messages import Pong

INTERVAL_S = 0.2
UNTIL_OFFLINE = 6


class PlayedLink:
    """A probe's connection; `refusal` is what the first question is answered with, if anything."""

    def __init__(self, refusal=None, tails=None):
        self.refusal = refusal
        self.tails = tails or {}

    async def send(self, ping):
        await trio.lowlevel.checkpoint()
        self.ping = ping

    async def expect(self, kind):
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        return Pong(
            ping_id=self.ping.ping_id,
            mode=SiteMode.ACTIVE_READ_WRITE.value,
            received={},
            applied={},
            tails=self.tails,
            told={},
            wall_us=0,
        )


class Played:
    """A peer: what each dial comes to, in turn, the last one for ever; the times of the dials and the reports."""

    def __init__(self, *turns):
        self.turns = list(turns)
        self.dials_s = []
        self.reports = []
        self.lines = []
        self.record = PeerRecord(SiteConfig("alpha", 1, "127.0.0.1", 1, Path("alpha")))
        self.live = SimpleNamespace(close=self.close)

    async def dial(self, site, role):
        self.dials_s.append(trio.current_time())
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        await trio.lowlevel.checkpoint()
        if isinstance(turn, PlayedLink):
            return turn
        raise turn

    async def close(self, link):
        await trio.lowlevel.checkpoint()

    async def take(self, reports):
        async for report in reports:
            self.reports.append((trio.current_time(), report.healthy))


@pytest.fixture
async def probe(nursery):
    async def run(*turns):
        played = Played(*turns)
        reports, taken = trio.open_memory_channel(10)
        nursery.start_soon(played.take, taken)
        nursery.start_soon(
            lambda: run_health_prober(
                dialing=played,
                record=played.record,
                interval_s=INTERVAL_S,
                probes_until_offline=UNTIL_OFFLINE,
                view=lambda: SelfView("ActiveReadWrite", {}, {}, {}),
                wall_clock=SystemClock(),
                reports=reports,
                logger=make_logger_onto(played.lines.append, "beta", SystemClock()),
            )
        )
        return played

    return run


def locked(wait_ms):
    return PeerRefused("rate_limited", "locked after too many attempts", wait_ms=wait_ms)


async def test_a_probe_that_comes_back_is_a_healthy_report_each_interval(autojump_clock, probe):
    """One connection, one report in each interval."""
    played = await probe(PlayedLink())
    await trio.sleep(10 * INTERVAL_S + INTERVAL_S / 2)
    assert [healthy for _, healthy in played.reports] == [True] * 11
    assert len(played.dials_s) == 1


async def test_a_port_that_nothing_listens_on_is_tried_each_interval(autojump_clock, probe):
    """It costs the peer nothing, so its return is seen at once."""
    played = await probe(OSError("refused"))
    await trio.sleep(10 * INTERVAL_S + INTERVAL_S / 2)
    assert len(played.dials_s) == len(played.reports) == 11


async def test_a_peer_that_takes_connections_and_does_not_answer_is_tried_less_and_less_often(autojump_clock, probe):
    """It is reported as failed each interval all the same."""
    played = await probe(trio.TooSlowError())
    await trio.sleep(60)
    pauses = [later - earlier for earlier, later in pairwise(played.dials_s)]
    assert all(later >= earlier - INTERVAL_S for earlier, later in pairwise(pauses))
    # Each of the failures that take a peer to Offline is a real probe.
    assert pauses[:UNTIL_OFFLINE] == pytest.approx([INTERVAL_S] * UNTIL_OFFLINE)
    assert max(pauses) <= DIAL_PAUSE_MAX_S + INTERVAL_S
    assert len(played.reports) >= 60 / INTERVAL_S - 1
    assert not any(healthy for _, healthy in played.reports)


@pytest.mark.parametrize("turn", [locked(7_000), PlayedLink(locked(7_000))], ids=["before", "after the proof"])
async def test_the_wait_of_a_refusal_is_heeded(autojump_clock, probe, turn):
    """Whoever is told to stay away for so long does, and fails meanwhile."""
    played = await probe(turn, PlayedLink())
    await trio.sleep(10)
    first_s, second_s = played.dials_s
    assert 7 <= second_s - first_s <= 7 + 2 * INTERVAL_S
    assert [healthy for at_s, healthy in played.reports if at_s < second_s] == [False] * int(7 / INTERVAL_S)
    assert played.reports[-1][1] is True


@pytest.mark.parametrize("turn", [locked(3_600_000), trio.TooSlowError()], ids=["refused", "no answer"])
async def test_a_peer_that_comes_to_us_is_tried_at_once(autojump_clock, probe, turn):
    """What it said or did before it dialled us no longer counts."""
    played = await probe(turn, turn, turn, turn, turn, PlayedLink())
    for _ in range(5):
        await trio.sleep(DIAL_PAUSE_MAX_S)
        played.record.called_at_s = trio.current_time()
    await trio.sleep(2 * INTERVAL_S)
    assert played.reports[-1][1] is True


async def test_an_answer_that_no_peer_may_give_is_told(autojump_clock, probe):
    """An altered or forged frame on a probe changes nothing, and is in the log as on any other connection."""
    altered = ProtocolViolation("bad_mac", "the frame was altered")
    played = await probe(PlayedLink(altered), altered, trio.TooSlowError(), PlayedLink())
    await trio.sleep(5)
    told = [json.loads(line) for line in played.lines]
    assert [(line["event"], line["peer"], line["code"]) for line in told] == [("batch_rejected", "alpha", "bad_mac")]
    assert [healthy for _, healthy in played.reports[:4]] == [False, False, False, True]


async def test_a_peer_is_believed_the_tails_of_its_own_journals_alone(autojump_clock, probe):
    """A starting site waits for what the tails tell: with another site's a peer could keep it waiting for ever."""
    played = await probe(PlayedLink(tails={JournalId(2, 7): (1 << 60,)}), PlayedLink(tails={JournalId(1, 7): (5,)}))
    await trio.sleep(5)
    assert played.reports[0][1] is False
    assert played.record.first_tails == {JournalId(1, 7): (5,)}
