"""Compacted batches have the effect of whole ones: the same tables, cursors and findings after every single delivery."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from claudefs_repl.block import SUPERSEDED, Block, NewRow, join_blocks
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.journal import JournalId, Op, entry_crc32, make_inode, shard_of
from claudefs_repl.operations import (
    Create,
    Link,
    RemoveXattr,
    Rename,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
    Write,
)
from claudefs_repl.sync import BatchCompactor
from protocol.payload import OP_OF, decode_payload, encode_payload
from tests.nodes.store.test_conflicts import found_by

SHARDS = 2
ORIGINS = (1, 2, 3)
FILES = tuple(make_inode(origin, 1) for origin in ORIGINS)
BRISK = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))

values = st.integers(0, 9)
names = st.sampled_from([b"user.a", b"user.b"])
changes = st.one_of(
    st.builds(Write, st.integers(0, 3), st.binary(min_size=1, max_size=6)),
    st.builds(Write, st.integers(0, 3), st.sampled_from([b"", b"wide" * 3])),
    st.builds(Truncate, st.integers(0, 6)),
    st.builds(SetAttr.only, mode=values, uid=st.none() | values),
    st.builds(SetAttr.only, gid=st.none() | values, mtime_ns=values),
    st.builds(SetXattr, names, st.binary(max_size=2)),
    st.builds(RemoveXattr, names),
)
namings = st.one_of(
    st.builds(Link, st.just(1), st.sampled_from([b"n", b"m"])),
    st.builds(Unlink, st.just(1), st.sampled_from([b"n", b"m"]), st.just(False)),
    st.builds(Rename, st.just(1), st.just(b"n"), st.just(1), st.just(b"m"), st.just(False), st.just(())),
    st.just(Unlink(None, None, False)),
)
actions = st.lists(
    st.tuples(
        st.sampled_from(ORIGINS),
        st.sampled_from(FILES),
        st.integers(0, 9).flatmap(lambda one: changes if one else namings),
        st.integers(0, 3),
        st.integers(0, 60).map(
            lambda one: {1: "back", 2: "damaged", 3: "unknown", 4: "hears", 5: "hears"}.get(one, "")
        ),
    ),
    min_size=30,
    max_size=80,
)


class Writer:
    """A site's journal as its disk has it: what it hears of the others shows in its entries' `seen`."""

    def __init__(self, origin: int):
        self.journal = JournalId(origin, origin)
        self.blocks: dict[int, list[Block]] = {shard: [] for shard in range(SHARDS)}
        self.seen: dict[JournalId, tuple[int, ...]] = {}

    def write(self, stamp: int, inode: int, operation: object, what: str = "") -> None:
        shard = shard_of(inode, SHARDS)
        seq = len(self.blocks[shard]) + 1
        op, payload = OP_OF[type(operation)], encode_payload(operation)
        if what == "unknown":  # the version of the payload
            payload = payload[:1] + b"\x63" + payload[2:]
        crc32 = entry_crc32(seq, shard, self.journal.origin, stamp, inode, op, payload) ^ (what == "damaged")
        row = NewRow(stamp, op, inode, payload, crc32)
        seen = encode_cursors(self.seen, SHARDS)
        self.blocks[shard].append(Block.build(shard=shard, first_seq=seq, rows=[row], seen=seen))

    def tails(self) -> tuple[int, ...]:
        return tuple(len(self.blocks[shard]) for shard in range(SHARDS))


def write_all(history) -> list[Writer]:
    writers = {origin: Writer(origin) for origin in ORIGINS}
    stamp = 10
    for writer in writers.values():
        writer.write(1, make_inode(writer.journal.origin, 1), Create(0o600, 0, 0, 0, 1, b"n"))
    for origin, inode, operation, ticks, what in history:
        writer = writers[origin]
        stamp += ticks
        if what == "hears":
            writer.seen = {other.journal: other.tails() for other in writers.values() if other is not writer}
        at = max(10, stamp - 40) if what == "back" else stamp
        writer.write(at, inode, operation, what)
    return list(writers.values())


def batches_of(writer: Writer, chance: random.Random) -> list[list[Block]]:
    """Each shard's entries joined into batches anywhere."""
    queues = []
    for blocks in writer.blocks.values():
        queue, rest = [], list(blocks)
        while rest:
            count = chance.randint(1, len(rest))
            queue.append(join_blocks(rest[:count]))
            del rest[:count]
        queues.append(queue)
    return queues


def deliveries(writers: list[Writer], chance: random.Random):
    """(journal, whole blocks, the same as compaction sends them) in any order that keeps each shard's.

    Some batches come twice, some begin with what is there already and come cut, as after a reconnect.
    """
    queues = [(writer.journal, queue) for writer in writers for queue in batches_of(writer, chance)]
    while queues := [(journal, queue) for journal, queue in queues if queue]:
        journal, queue = queues[chance.randrange(len(queues))]
        compactor = BatchCompactor(journal.origin, SHARDS, decode_payload)
        whole = queue.pop(0)
        sent = compactor.compact(whole).block
        if whole.count > 1 and chance.random() < 0.3:
            middle = chance.randint(whole.first_seq, whole.last_seq - 1)
            begin = whole.cut(first_seq=whole.first_seq, last_seq=middle)
            yield journal, begin, compactor.compact(begin).block
            if chance.random() < 0.5:
                whole, sent = whole.after(middle), sent.after(middle)
        yield journal, whole, sent
        if chance.random() < 0.2:
            yield journal, whole, compactor.compact(sent).block


def compare(memory_site, writers: list[Writer], chance: random.Random) -> int:
    """Deliver everything to a site as it was written and to another compacted; how many entries were emptied."""
    one, other = memory_site(98, shard_count=SHARDS), memory_site(99, shard_count=SHARDS)
    emptied: set[tuple[int, int, int]] = set()
    for journal, whole, sent in deliveries(writers, chance):
        emptied |= {(journal.origin, whole.shard, row.seq) for row in sent.rows() if row.flags}
        reports = one.take(journal, [whole]), other.take(journal, [sent])
        tables, letters = zip(*(tables_and_letters(site) for site in (one, other)), strict=True)
        assert tables[0] == tables[1]
        # Nothing is left to do for an emptied entry, so it waits for no dead letter.
        assert letters[1] <= letters[0] <= letters[1] | emptied
        told = [
            (report.entries, report.last_timestamp_us, {conflict.id: conflict for conflict in report.conflicts})
            for report in reports
        ]
        if not letters[0]:
            assert told[0] == told[1]
        assert found_by(one) == found_by(other)
    count = len(emptied)
    assert one.view.tree_digest() == other.view.tree_digest()
    assert one.view.manifest(None, 100) == other.view.manifest(None, 100)
    for site in (one, other):
        site.close()
    return count


def tables_and_letters(site) -> tuple[dict, set[tuple[int, int, int]]]:
    """What is a function of the entries that a site has, and which entries wait."""
    tables = site.dump()
    letters = {(origin, shard, seq) for origin, _, shard, seq, *_ in tables.pop("dead_letter")}
    return tables, letters


@BRISK
@given(history=actions, seed=st.integers(0, 1 << 32))
def test_compacted_batches_have_the_effect_of_whole_ones(memory_site, history, seed):
    """Three sites that write the same files and hear of each other now and then; stamps that go back, damaged entries."""
    count = compare(memory_site, write_all(history), random.Random(seed))
    event("some entries are emptied" if count else "nothing is emptied")


def test_a_busy_history_is_really_compacted(memory_site):
    """The comparison is not empty: where files are written over and over, most payloads are left out."""
    chance = random.Random(1)
    history = [
        (chance.choice(ORIGINS), chance.choice(FILES), Write(chance.randint(0, 2), bytes(chance.randint(1, 9))), 1, "")
        for _ in range(300)
    ]
    assert compare(memory_site, write_all(history), random.Random(2)) > 150


def superseded(**changes):
    """A journal of one file and an entry that says that it was superseded."""
    inode = make_inode(1, 1)
    shard = shard_of(inode, SHARDS)
    made = NewRow(1, Op.CREATE, inode, encode_payload(Create(0o600, 0, 0, 7, 1, b"n")), 0)
    made = replace(made, crc32=entry_crc32(1, shard, 1, 1, inode, Op.CREATE, made.payload))
    row = replace(NewRow(5, Op.WRITE, inode, b"", 0x1234, SUPERSEDED), **changes)
    return Block.build(shard=shard, first_seq=1, rows=[made, row], seen=encode_cursors({}, SHARDS))


def test_a_superseded_entry_counts_and_does_nothing(site):
    """It is one of the entries that are applied, the cursor passes it, and the tree is as before."""
    journal = JournalId(1, 1)
    report = site.take(journal, [superseded()])
    assert (report.entries, report.dead_letters) == (2, [])
    assert sum(site.view.applied()[journal]) == 2
    found = site.view.resolve(b"/n")
    assert (found.mtime_ns, found.size) == (7, 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"payload": encode_payload(Write(0, b"x"))}, "flags 0x1 on WRITE with 6 bytes of payload"),
        ({"op": Op.TRUNCATE}, "flags 0x1 on TRUNCATE"),
        ({"op": Op.UNLINK}, "flags 0x1 on UNLINK"),
        ({"flags": SUPERSEDED | 2}, "flags 0x3 on WRITE"),
        ({"flags": 0}, "the checksum does not match"),
        ({"inode": 0}, "inode 0 is out of range"),
        ({"timestamp_us": 1 << 60}, "is out of range"),
    ],
)
def test_what_only_says_that_it_is_superseded_is_a_dead_letter(site, changes, reason):
    """An entry that is flagged has no payload and one of four operations, and passes what every entry has to."""
    report = site.take(JournalId(1, 1), [superseded(**changes)])
    (letter,) = report.dead_letters
    assert letter.key.seq == 2
    assert letter.is_unsound
    assert reason in letter.reason
    assert site.view.resolve(b"/n").mtime_ns == 7
