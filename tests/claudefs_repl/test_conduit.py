"""Both ends of a conduit as pure state, against lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.conduit import ReceiveProgress, SendProgress, Verdict, beyond
from claudefs_repl.error import ProtocolViolation
from claudefs_repl.journal import Incarnation, JournalId, Op, SiteId, entry_crc32
from claudefs_repl.sync import cut_batches

SEEN = encode_cursors({}, 2)
OWN, FORMER = JournalId(SiteId(1), Incarnation(7)), JournalId(SiteId(2), Incarnation(8))


def block(first, count, shard=0, size=10, seen=SEEN):
    rows = [
        NewRow(1000 + seq, Op.WRITE, 5, b"p" * size, entry_crc32(seq, shard, 1, 1000 + seq, 5, Op.WRITE, b"p" * size))
        for seq in range(first, first + count)
    ]
    return Block.build(shard=shard, first_seq=first, rows=rows, seen=seen)


def progress(acked=(0, 0), batches=4, size=1 << 20):
    sending = SendProgress(window_batches=batches, window_bytes=size)
    sending.begin(OWN, acked)
    return sending


def receiver(received):
    receiving = ReceiveProgress()
    receiving.begin(OWN, received)
    return receiving


def test_an_ack_moves_the_cursor_and_frees_the_window():
    """Cumulative acks free every batch that they cover."""
    sending = progress(batches=2)
    assert [sending.send(OWN, block(1, 3)), sending.send(OWN, block(4, 2))] == [1, 2]
    assert not sending.has_room()
    assert sending.ack({OWN: (3, 0)}) == 3
    assert sending.has_room()
    assert sending.batches_in_flight == 1
    assert sending.ack({OWN: (5, 0)}) == 2
    assert (sending.acked[OWN], sending.bytes_in_flight) == ((5, 0), 0)


def test_a_late_ack_takes_nothing_back():
    """A cursor that was acknowledged never moves backwards."""
    sending = progress()
    sending.send(OWN, block(1, 5))
    sending.ack({OWN: (4, 0)})
    assert sending.ack({OWN: (2, 0)}) == 0
    assert sending.acked[OWN] == (4, 0)


@pytest.mark.parametrize("received", [(6, 0), (0, 1), (1,), (1, 0, 0)])
def test_an_ack_beyond_what_was_sent_moves_nothing(received):
    """An ack of what was never sent, or of other shards, is a violation."""
    sending = progress()
    sending.send(OWN, block(1, 5))
    with pytest.raises(ProtocolViolation):
        sending.ack({OWN: received})
    assert sending.acked[OWN] == (0, 0)


def test_a_batch_larger_than_the_window_passes_when_nothing_is_in_flight():
    """The window in bytes never stops a conduit for ever."""
    sending = progress(size=8)
    assert sending.has_room()
    sending.send(OWN, block(1, 10))
    assert not sending.has_room()
    sending.ack({OWN: (10, 0)})
    assert sending.has_room()


def test_each_journal_has_cursors_of_its_own():
    """An ack tells of any of the journals that are sent; the window is over all of them."""
    sending = progress(batches=2)
    sending.begin(FORMER, (4, 0))
    assert [sending.send(OWN, block(1, 3)), sending.send(FORMER, block(5, 2))] == [1, 2]
    assert not sending.has_room()
    assert sending.ack({FORMER: (6, 0)}) == 2
    assert sending.has_room()
    assert (sending.acked[OWN], sending.acked[FORMER], sending.batches_in_flight) == ((0, 0), (6, 0), 1)
    assert sending.ack({OWN: (3, 0), FORMER: (6, 0)}) == 3


def test_an_ack_of_a_journal_that_is_not_sent_is_a_violation():
    """A peer acknowledges nothing that it was not given."""
    sending = progress()
    sending.send(OWN, block(1, 3))
    with pytest.raises(ProtocolViolation):
        sending.ack({OWN: (3, 0), FORMER: (1, 0)})
    assert (sending.acked, sending.batches_in_flight) == ({OWN: (0, 0)}, 1)


def test_of_a_journal_that_others_send_too_the_peer_may_have_more():
    """What another site has passed on meanwhile is no violation, and moves no cursor beyond what was sent here."""
    sending = SendProgress(window_batches=4, window_bytes=1 << 20)
    sending.begin(FORMER, (0, 0), is_shared=True)
    sending.send(FORMER, block(1, 3))
    assert sending.ack({FORMER: (9, 5)}) == 3
    assert sending.acked[FORMER] == (3, 0)
    assert sending.send(FORMER, block(4, 1)) == 2


def test_what_a_log_has_already_is_cut_from_what_is_appended():
    """Several senders of one journal overlap: only what lies beyond the log's end is left, in order."""
    offered = [block(1, 3), block(4, 3), block(1, 2, shard=1)]
    assert [(b.shard, b.first_seq, b.last_seq) for b in beyond(offered, (4, 2))] == [(0, 5, 6)]
    assert [(b.shard, b.first_seq, b.last_seq) for b in beyond(offered, (0, 0))] == [(0, 1, 3), (0, 4, 6), (1, 1, 2)]
    assert beyond(offered, (6, 2)) == []


def test_a_redelivered_batch_is_a_duplicate_and_no_gap():
    """What is here already is acknowledged again, not refused."""
    receiving = receiver((5, 0))
    assert receiving.take(OWN, block(1, 5)) == (Verdict.DUPLICATE, None)
    assert receiving.wanted(OWN) == (6, 1)


def test_a_gap_is_refused_and_moves_nothing():
    """A block beyond the next seq is a gap."""
    receiving = receiver((5, 0))
    assert receiving.take(OWN, block(7, 2)) == (Verdict.GAP, None)
    assert receiving.wanted(OWN) == (6, 1)


def test_an_overlap_is_cut_to_what_is_new():
    """Of a block that begins before the cursor only the rest is taken."""
    receiving = receiver((5, 0))
    verdict, rest = receiving.take(OWN, block(4, 4))
    assert verdict is Verdict.ACCEPT
    assert (rest.first_seq, rest.last_seq) == (6, 7)


def test_a_shard_that_does_not_exist_is_a_violation():
    """A block of shard 2 of 2 is refused."""
    with pytest.raises(ProtocolViolation):
        receiver((0, 0)).take(OWN, block(1, 1, shard=2))


def test_batches_are_numbered_without_a_hole():
    """A repeated, skipped or zero batch_seq is a violation."""
    receiving = receiver((0, 0))
    receiving.check_batch_seq(1)
    for wrong in (1, 3, 0):
        with pytest.raises(ProtocolViolation):
            receiving.check_batch_seq(wrong)
    receiving.check_batch_seq(2)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), max_size=30))
def test_receiving_equals_a_set_of_seqs(offers):
    """Whatever is offered in whatever order, what was taken is a prefix without a hole, each seq once."""
    receiving, taken = receiver((0, 0)), []
    for first, count in offers:
        verdict, rest = receiving.take(OWN, block(first, count))
        if verdict is Verdict.ACCEPT:
            taken += range(rest.first_seq, rest.last_seq + 1)
        elif verdict is Verdict.GAP:
            assert first > len(taken) + 1
        else:
            assert first + count - 1 <= len(taken)
    assert taken == list(range(1, len(taken) + 1))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(0, 40), st.integers(0, 3)), max_size=25),
    st.integers(50, 600),
)
def test_cutting_batches_keeps_every_entry_in_order(shape, limit):
    """Per shard the batches are the blocks' entries in order, none above the limit unless a block is so by itself."""
    nexts, blocks = [1, 1, 1], []
    for shard, count, size, seen in shape:
        vector = encode_cursors({(7, seen): (seen + 1, 0)}, 2)
        blocks.append(block(nexts[shard], count, shard, size, vector))
        nexts[shard] += count
    batches = list(cut_batches(blocks, batch_bytes_max=limit))
    for shard in range(3):
        rows = [(row.seq, row.payload) for b in blocks if b.shard == shard for row in b.rows()]
        cut = [(row.seq, row.payload) for b in batches if b.shard == shard for row in b.rows()]
        assert cut == rows
        seen = [b.seen_table[row.seen] for b in blocks if b.shard == shard for row in b.rows()]
        assert [b.seen_table[row.seen] for b in batches if b.shard == shard for row in b.rows()] == seen
    largest = max((len(b.body) for b in blocks), default=0)
    assert all(len(b.body) <= max(limit, largest) for b in batches)
