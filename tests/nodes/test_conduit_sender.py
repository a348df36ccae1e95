"""The conduit's sender against a peer that a test plays, on a clock that jumps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from claudefs_repl.auth_ratelimit import Allowed, AuthRateLimiter, Throttled
from claudefs_repl.batch_auth import BatchAuthenticator, BatchAuthKey
from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import NotWritable
from claudefs_repl.failover import SiteMode
from claudefs_repl.health import ConduitState
from claudefs_repl.journal import Incarnation, JournalId, Op, SiteId, entry_crc32
from claudefs_repl.topology import RateLimitConfig, ReplicationConfig, SiteConfig
from nodes.conduit_sender import THROTTLED_FOR_S, run_conduit_sender
from nodes.events import make_logger
from nodes.peers import PeerRecord
from nodes.runtime import SystemClock
from nodes.write_gate import WriteGate
from protocol.messages import Ack, Batch, Nack, Welcome

SHARDS = 1
JOURNAL = JournalId(SiteId(1), Incarnation(1))
PAYLOAD = b"\x93\x01\x00\xc4\x01x"


def write(seq):
    row = NewRow(1000, Op.WRITE, 5, PAYLOAD, entry_crc32(seq, 0, 1, 1000, 5, Op.WRITE, PAYLOAD))
    return Block.build(shard=0, first_seq=seq, rows=[row], seen=encode_cursors({}, SHARDS))


BLOCK = write(1)


class Log:
    """A journal of one block, or of what several reads give."""

    shard_count, tails, position, firsts = SHARDS, (1,), 1, (1,)

    def __init__(self, journal=JOURNAL, reads=None):
        self.journal = journal
        self.reads = reads or ([BLOCK],)
        self.left = []

    def reader(self, after):
        self.left = list(self.reads) if after == (0,) else []
        return self

    async def read(self, *, bytes_max):
        await trio.lowlevel.checkpoint()
        return self.left.pop(0) if self.left else []

    async def wait_beyond(self, position):
        await trio.sleep_forever()

    async def crc_at(self, shard, seq):
        await trio.lowlevel.checkpoint()
        return BLOCK.crcs[0] if seq == 1 else 0

    async def close(self):
        await trio.lowlevel.checkpoint()


class PlayedLink:
    """A conduit on which the peer answers each message by a function."""

    def __init__(self, answer, current, last_crcs, told):
        self.answer = answer
        self.current = current
        self.last_crcs = last_crcs
        self.told = told
        self.session = SimpleNamespace(batch_key=BatchAuthKey(bytes(32)))
        self.sends, self.receives = trio.open_memory_channel(10)

    async def send(self, message):
        answers = self.answer(message)
        for one in answers if isinstance(answers, list) else [answers]:
            if one is not None:
                await self.sends.send(one)

    async def expect(self, kind):
        await trio.lowlevel.checkpoint()
        received = {JOURNAL: (1,)} if self.last_crcs else {}
        return Welcome(received, {}, SiteMode.ACTIVE_READ_WRITE.value, self.current, self.last_crcs, self.told)

    async def receive(self):
        return await self.receives.receive()


class Dialing:
    def __init__(self, answer, current, last_crcs, told):
        self.answer = answer
        self.current = current
        self.last_crcs = last_crcs
        self.told = told
        self.dialled_at_s = []
        self.live = self

    async def dial(self, peer, role):
        await trio.lowlevel.checkpoint()
        self.dialled_at_s.append(trio.current_time())
        return PlayedLink(self.answer, self.current, self.last_crcs, self.told)

    async def close(self, link):
        await trio.lowlevel.checkpoint()


@pytest.fixture
def start(tmp_path, nursery):
    def start(answer, replicas=(), current=None, last_crcs=(), told=(), gate=None, log=None, limiter=None, **settings):
        dialing = Dialing(answer, current or {}, last_crcs, {JOURNAL: told} if told else {})
        record = PeerRecord(SiteConfig("beta", SiteId(2), "127.0.0.2", 1, Path("beta")))
        nursery.start_soon(
            lambda: run_conduit_sender(
                dialing=dialing,
                record=record,
                journals=SimpleNamespace(own=log or Log(), replicas={log.journal: log for log in replicas}),
                config=ReplicationConfig(reconnect_min_s=0.1, reconnect_max_s=5.0, idle_timeout_s=15.0, **settings),
                limiter=limiter or AuthRateLimiter(RateLimitConfig()),
                gate=gate or WriteGate("alpha", SiteMode.ACTIVE_READ_WRITE),
                wall_clock=SystemClock(),
                rng=random.Random(0),
                logger=make_logger(tmp_path / "events.jsonl", "alpha", SystemClock()),
            )
        )
        return dialing, record

    return start


async def test_a_conduit_that_ends_as_soon_as_it_is_up_is_dialled_less_and_less_often(start, autojump_clock):
    """A peer that refuses every batch is no reason to use up the attempts that probes and questions need too."""

    def refuse(message):
        if isinstance(message, Batch):
            return Nack(1, "clock_drift", JOURNAL.origin, JOURNAL.incarnation, 0, 1, 0, "")
        return None

    dialing, _ = start(refuse)
    await trio.sleep(60)
    assert 10 < len(dialing.dialled_at_s) < 29


async def test_an_ack_that_covers_nothing_does_not_show_that_anything_moves(start, autojump_clock):
    """A peer that answers but makes nothing durable stands still, as the time of the last ack tells."""
    _, record = start(lambda message: Ack(0, {}, {}, 0))
    await trio.sleep(30)
    assert record.progress.batches_in_flight == 1
    assert trio.current_time() - record.last_ack_at_s == pytest.approx(30)


async def test_an_idle_conduit_does_not_stand_still(start, autojump_clock):
    """With nothing in flight every ack is as good as another."""
    _, record = start(lambda message: Ack(1, {JOURNAL: (1,)}, {}, 0))
    await trio.sleep(30)
    assert record.acked == (1,)
    assert trio.current_time() - record.last_ack_at_s <= 5


async def test_a_refusal_for_stamps_is_kept_until_the_peer_takes_entries(start, autojump_clock, tmp_path):
    """It is told once however often the peer repeats it, shows in the peer's record, and ends with the first ack."""
    refuses = True

    def answer(message):
        if not isinstance(message, Batch):
            return None
        if refuses:
            return Nack(1, "clock_drift", JOURNAL.origin, JOURNAL.incarnation, 0, 1, 0, "an hour beyond")
        return Ack(1, {JOURNAL: (1,)}, {}, 0)

    _, record = start(answer)
    await trio.sleep(30)
    assert record.stamps_refused == "an hour beyond"
    refuses = False
    await trio.sleep(10)
    assert record.stamps_refused is None
    events = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events.count("stamps_refused") == events.count("stamps_accepted") == 1


FORMER = [JournalId(SiteId(site), Incarnation(9)) for site in (1, 2, 3)]
CURRENT = {SiteId(1): JOURNAL.incarnation, SiteId(2): Incarnation(2), SiteId(3): Incarnation(3)}


def taking(received):
    """A peer that takes and acknowledges each batch, and notes whose it was."""

    def answer(message):
        if not isinstance(message, Batch):
            return None
        received.append(JournalId(message.source_site_id, message.incarnation))
        return Ack(message.batch_seq, dict.fromkeys(received, (1,)), {}, 0)

    return answer


async def test_former_journals_are_passed_on_beside_the_own_to_their_origin_too(start, autojump_clock):
    """Own former ones, those of others and the peer's own: each once, with its origin as the batch's source."""
    received = []
    _, record = start(taking(received), [Log(journal) for journal in FORMER], CURRENT)
    await trio.sleep(1)
    assert sorted(received) == sorted([JOURNAL, *FORMER])
    assert record.acked == (1,)


async def test_what_the_peer_does_not_hold_to_be_former_is_not_passed_on(start, autojump_clock):
    """Neither the current journal of another site nor one of a site that the peer has not met."""
    received = []
    replicas = [Log(JournalId(SiteId(2), Incarnation(2))), Log(JournalId(SiteId(4), Incarnation(9)))]
    start(taking(received), replicas, CURRENT)
    await trio.sleep(60)
    assert set(received) == {JOURNAL}


async def test_what_becomes_former_while_the_conduit_is_up_is_passed_on(start, autojump_clock):
    """The peer's second welcome says so; what comes to this site later is found as well."""
    received, taken = [], None
    replica = Log(FORMER[2])

    def answer(message):
        if isinstance(message, Batch):
            return [taken(message), Welcome({}, {}, SiteMode.ACTIVE_READ_WRITE.value, CURRENT, (), {})]
        return None

    taken = taking(received)
    late = Log(FORMER[1])
    late.tails = (0,)
    start(answer, [replica, late])
    await trio.sleep(1)
    assert received == [JOURNAL, FORMER[2]]
    late.tails = (1,)
    await trio.sleep(10)
    assert received == [JOURNAL, FORMER[2], FORMER[1]]


async def test_a_former_journal_that_the_peer_refuses_keeps_nothing_else_from_it(start, autojump_clock):
    """The own entries go on; the refused journal is tried again a minute later, and nothing is said of this site's clock."""
    received, refused = [], []

    def answer(message):
        if isinstance(message, Batch) and message.incarnation == FORMER[2].incarnation:
            refused.append(trio.current_time())
            return Nack(message.batch_seq, "clock_drift", *FORMER[2], 0, 1, 0, "")
        return taking(received)(message)

    _, record = start(answer, [Log(FORMER[2])], CURRENT)
    await trio.sleep(100)
    assert record.stamps_refused is None
    assert record.acked == (1,)
    assert len(refused) == 2
    assert refused[1] - refused[0] >= 60


async def test_a_peer_that_holds_another_entry_at_the_same_seq_is_sent_nothing(start, autojump_clock, tmp_path):
    """The site takes no writes from then on, and says what to do; it is told once, as an error."""
    received = []
    gate = WriteGate("alpha", SiteMode.ACTIVE_READ_WRITE)
    _, record = start(taking(received), last_crcs=(BLOCK.crcs[0] ^ 1,), gate=gate)
    await trio.sleep(30)
    assert received == []
    with pytest.raises(
        NotWritable, match=r"another entry of this site's journal at shard 0 seq 1.*bootstrap alpha --from"
    ):
        gate.check_write()
    assert "another entry" in record.conduit_detail
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(one["event"], one["level"]) for one in events] == [("journal_diverged", "error")]


async def test_a_peer_that_was_told_of_more_than_is_here_is_sent_nothing(start, autojump_clock, tmp_path):
    """What this site once told of was durable here: that it is gone shows although nobody has received it."""
    received = []
    gate = WriteGate("alpha", SiteMode.ACTIVE_READ_WRITE)
    start(taking(received), told=(2,), gate=gate)
    await trio.sleep(30)
    assert received == []
    with pytest.raises(NotWritable, match=r"was told of this site's journal up to \(2,\), which ends here at \(1,\)"):
        gate.check_write()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(one["event"], one["level"]) for one in events] == [("peer_ahead_of_origin", "error")]


async def test_two_that_refuse_each_other_do_not_wake_each_other_without_end(start, autojump_clock):
    """A peer that calls after each of our attempts is dialled at once the first times, and less and less often."""
    dialing, record = start(lambda message: None, told=(2,))
    until_s = trio.current_time() + 100
    while trio.current_time() < until_s:
        await trio.sleep(0.01)
        record.called_at_s = trio.current_time()
        record.came_back.notify()
    assert dialing.dialled_at_s[3] - dialing.dialled_at_s[0] < 2
    assert len(dialing.dialled_at_s) < 100 / 2.5 + 8


async def test_what_the_peer_was_told_and_is_here_is_sent(start, autojump_clock):
    """A peer that lacks what it was told of gets it."""
    received = []
    start(taking(received), told=(1,))
    await trio.sleep(30)
    assert set(received) == {JOURNAL}


@pytest.mark.parametrize("crc", [0, BLOCK.crcs[0]])
async def test_a_peer_that_holds_the_same_entry_or_no_longer_knows_it_is_served(start, autojump_clock, crc):
    """0 is no checksum: the peer has trimmed what it would compare."""
    _, record = start(lambda message: None, last_crcs=(crc,))
    await trio.sleep(1)
    assert record.conduit_state is ConduitState.CONNECTED
    assert record.acked == (1,)


async def test_a_former_journal_that_was_trimmed_here_is_left_to_others_until_the_peer_has_enough(
    start, autojump_clock
):
    """The own entries go on, nobody is told to begin anew, and what is here follows once the peer has what is before it."""
    received = []
    replica = Log(FORMER[2])
    replica.firsts = replica.tails = (2,)
    _, record = start(taking(received), [replica], CURRENT)
    await trio.sleep(20)
    assert set(received) == {JOURNAL}
    assert not record.cut_off
    replica.tails = (3,)
    record.received = {FORMER[2]: (1,)}
    begun = []
    replica.reader = lambda after: begun.append(after) or Log.reader(replica, after)
    await trio.sleep(8)
    assert (1,) in begun


class Limiter:
    """Lets so many batches pass, each after it had to wait once."""

    def __init__(self, *, waits):
        self.waits = waits

    def check_batch_send(self, site_id, byte_count, now_us):
        if self.waits:
            self.waits -= 1
            return Throttled(wait_ms=100)
        return Allowed()


def sent_by(start, nursery, mode, *, waits):
    """What a conduit sends of two batches of two writes of the same bytes each, and what its record tells then."""
    batches = []

    def answer(message):
        if isinstance(message, Batch):
            batches.append(message)
            return Ack(message.batch_seq, {JOURNAL: (message.last_seq,)}, {}, 0)
        return None

    log = Log(reads=([write(1), write(2)], [write(3), write(4)]))
    log.tails = (4,)
    _, record = start(answer, log=log, limiter=Limiter(waits=waits), compaction=mode)
    return batches, record


@pytest.mark.parametrize(
    ("mode", "waits", "expected"),
    [
        ("off", 1, [0, 0]),
        ("throttled", 0, [0, 0]),
        ("throttled", 1, [0, 1]),
        ("on", 0, [1, 1]),
    ],
)
async def test_batches_are_compacted_where_that_is_wanted(start, nursery, autojump_clock, mode, waits, expected):
    """Never, always, or to a peer for which batches had to wait lately; the tag is over what is sent, and it is told."""
    batches, record = sent_by(start, nursery, mode, waits=waits)
    await trio.sleep(1)
    assert [sum(message.block.flags) for message in batches] == expected
    assert [(message.first_seq, message.last_seq) for message in batches] == [(1, 2), (3, 4)]
    assert record.acked == (4,)
    assert record.rows_emptied == sum(expected)
    assert record.bytes_saved == sum(expected) * len(PAYLOAD)
    assert record.bytes_sent == sum(len(message.block.body) for message in batches)
    verifier = BatchAuthenticator(BatchAuthKey(bytes(32)), SiteId(2))
    for message in batches:
        assert verifier.verify_body(message.tag, JOURNAL.origin, message.batch_seq, message.block.body).valid


async def test_a_link_counts_as_throttled_for_a_while(start, nursery, autojump_clock):
    """Long after the last wait at the rate limiter, batches are sent whole again."""
    batches, record = sent_by(start, nursery, "throttled", waits=0)
    record.throttled_at_s = trio.current_time() - THROTTLED_FOR_S - 1
    await trio.sleep(1)
    assert [sum(message.block.flags) for message in batches] == [0, 0]
