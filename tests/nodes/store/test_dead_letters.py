"""Dead letters: what a later program can decode takes effect as if it had never been put aside."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import ROOT_INODE, JournalId, Op, Shard, SiteId, entry_crc32, make_inode, shard_of
from claudefs_repl.operations import Create, Link, SetAttr, Write
from nodes.store import fold as fold_module
from nodes.store.conflict_view import page_conflicts
from nodes.store.dead_letters import EntryKey, read_letters, waits_for
from nodes.store.fold import Fold
from nodes.store.local import CreateFile, MakeLink, Remove, SetAttributes
from nodes.store.retry import PAGE_LETTERS, retry_letters
from protocol.payload import OP_OF, decode_payload, encode_payload

_spec = importlib.util.spec_from_file_location("convergence", Path(__file__).parent / "test_convergence.py")
convergence = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(convergence)

SHARDS = 2
JOURNAL = JournalId(SiteId(5), 7)
NEWER = 2
"""The payload version that the program knows only after its upgrade."""


class Decoder:
    """Takes the place of the payload decoder: it can be upgraded to the newer version, which says the same."""

    def __init__(self):
        self.is_upgraded = False

    def __call__(self, op, payload):
        if self.is_upgraded and payload[1] == NEWER:
            payload = payload[:1] + b"\x01" + payload[2:]
        return decode_payload(op, payload)


@pytest.fixture
def decoder(monkeypatch):
    decoder = Decoder()
    monkeypatch.setattr(fold_module, "decode_payload", decoder)
    return decoder


def newer(payload):
    assert payload[1] == 1
    return payload[:1] + bytes([NEWER]) + payload[2:]


def rebuilt(block, origin, is_newer):
    """The same entries, some of them with payloads of the newer version."""
    pieces = []
    for row in block.rows():
        payload = newer(row.payload) if is_newer() else row.payload
        crc32 = entry_crc32(row.seq, block.shard, origin, row.timestamp_us, row.inode, row.op, payload)
        rows = [NewRow(row.timestamp_us, Op(row.op), row.inode, payload, crc32)]
        seen = block.seen_table[row.seen]
        pieces.append(Block.build(shard=block.shard, first_seq=row.seq, rows=rows, seen=seen))
    return pieces


class Journal:
    """Entries of JOURNAL, written one after another about objects that are its own or others'."""

    def __init__(self):
        self.seqs = [0] * SHARDS

    def entry(self, timestamp_us, inode, operation, *, is_newer=False, seen=None, payload=None):
        shard = shard_of(inode, SHARDS)
        self.seqs[shard] += 1
        seq, op = self.seqs[shard], OP_OF[type(operation)]
        payload = encode_payload(operation) if payload is None else payload
        payload = newer(payload) if is_newer else payload
        crc32 = entry_crc32(seq, shard, JOURNAL.origin, timestamp_us, inode, op, payload)
        rows = [NewRow(timestamp_us, op, inode, payload, crc32)]
        return Block.build(shard=shard, first_seq=seq, rows=rows, seen=encode_cursors(seen or {}, SHARDS))


def made(timestamp_us):
    return make_inode(JOURNAL.origin, timestamp_us)


def create(name):
    return Create(0o600, 0, 0, 0, ROOT_INODE, name)


def retry(site, *, after=None, only=None):
    site.connection.execute("BEGIN")
    fold = Fold(site.connection, stable=site.stable, watched=site.watched)
    report = retry_letters(fold, after, only)
    fold.save()
    site.connection.execute("COMMIT")
    return report


def retry_all(site):
    applied, after = [], None
    while True:
        report = retry(site, after=after)
        applied += report.applied
        if (after := report.upto) is None:
            return applied


def letters(site):
    return read_letters(site.connection, None, 1000)


@convergence.BRISK
@given(actions=convergence.local_actions, newness=st.integers(1, 9), seed=st.integers(0, 1 << 32))
def test_what_is_retried_leaves_the_view_that_would_have_been(memory_site, actions, newness, seed):
    """Whatever is folded before, between and after, entries that were dead letters for a while change nothing in the end."""
    check_detour(memory_site, histories(memory_site, actions), newness, random.Random(seed), are_honest=True)


@convergence.BRISK
@given(actions=convergence.forgeries, newness=st.integers(1, 9), seed=st.integers(0, 1 << 32))
def test_forged_entries_may_make_the_detour_too(memory_site, actions, newness, seed):
    """The same for entries with any stamps, targets and `seen`, the unsound ones among them."""
    forgers = [convergence.Forger(1), convergence.Forger(2)]
    for action in actions:
        convergence.forge(forgers, action)
    check_detour(
        memory_site,
        {forger.journal: forger.blocks for forger in forgers},
        newness,
        random.Random(seed),
        are_honest=False,
    )


def histories(memory_site, actions):
    sites = [memory_site(number) for number in (1, 2, 3)]
    for action in actions:
        convergence.act(sites, action)
    for site in sites:
        site.close()
    return {site.journal: site.blocks for site in sites}


def check_detour(memory_site, journals, newness, chance, *, are_honest):
    decoder = Decoder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold_module, "decode_payload", decoder)
        mixed = {
            journal: {
                shard: [
                    piece
                    for block in blocks
                    for piece in rebuilt(block, journal.origin, lambda: chance.randrange(10) < newness)
                ]
                for shard, blocks in shards.items()
            }
            for journal, shards in journals.items()
        }
        straight, detour = memory_site(98), memory_site(99)
        decoder.is_upgraded = True
        for journal, shards in mixed.items():
            for blocks in shards.values():
                straight.take(journal, blocks)
        decoder.is_upgraded = False
        queues = [(journal, list(blocks)) for journal, shards in mixed.items() for blocks in shards.values() if blocks]
        while queues:
            queue = chance.choice(queues)
            detour.take(queue[0], [queue[1].pop(0)])
            if not queue[1]:
                queues.remove(queue)
            # Some retries come while more is on its way, with a program that may be the old one again afterwards.
            if chance.randrange(8) == 0:
                decoder.is_upgraded = chance.randrange(2) == 0
                retry_all(detour)
        decoder.is_upgraded = True
        retry_all(detour)
        assert detour.dump() == straight.dump()
        assert detour.view.tree_digest() == straight.view.tree_digest()
        if are_honest:  # only of entries whose `seen` is true is it known which are concurrent
            lists = [page_conflicts(each.connection, None, 10_000) for each in (detour, straight)]
            assert lists[0] == lists[1]
        straight.close()
        detour.close()


def test_only_its_own_object_waits_for_an_entry_that_cannot_be_decoded(site, decoder):
    """Other objects of the shard go on; the object's later entries wait, and are retried with it."""
    journal = Journal()
    one = made(20)
    other = next(made(number) for number in range(30, 99) if shard_of(made(number), SHARDS) == shard_of(one, SHARDS))
    site.take(JOURNAL, [journal.entry(20, one, create(b"one"), is_newer=True)])
    site.take(JOURNAL, [journal.entry(other & 0xFFF, other, create(b"other"))])
    report = site.take(JOURNAL, [journal.entry(200, one, Write(0, b"later"))])
    assert [letter.reason for letter in report.dead_letters] == [
        "waits for entry 1 of the same journal and shard, which is about the same object"
    ]
    assert site.listing() == {b"other": other}
    decoder.is_upgraded = True
    assert [key.seq for key in retry_all(site)] == [1, 3]
    assert letters(site) == []
    assert site.view.read(one, 0, 9) == b"later"


def test_what_waits_waits_for_the_first_that_still_cannot_be_decoded(site, decoder):
    """A retry brings an object's entries as far as the program understands them, and tells what holds up the rest."""
    journal = Journal()
    one = made(20)
    site.take(JOURNAL, [journal.entry(20, one, create(b"one"), is_newer=True)])
    site.take(JOURNAL, [journal.entry(201, one, SetAttr.only(mode=1), payload=b"\x91\x03")])
    site.take(JOURNAL, [journal.entry(202, one, Write(0, b"later"))])
    decoder.is_upgraded = True
    report = retry(site)
    assert ([key.seq for key in report.applied], report.left) == ([1], 2)
    assert [letter.reason for letter in letters(site)] == ["payload version 3 is not known", waits_for(2)]
    assert site.view.stat(one).size == 0


def test_an_unsound_entry_holds_up_nothing(site, decoder):
    """What no program will ever apply is kept with its reason, and nothing waits for it or is kept for it."""
    journal = Journal()
    wrong = journal.entry(9, made(8), create(b"x"))
    site.take(JOURNAL, [wrong])
    (letter,) = letters(site)
    assert letter.is_unsound
    assert site.take(JOURNAL, [journal.entry(10, made(8), SetAttr.only(mode=1))]).dead_letters == []
    before = site.dump()
    report = retry(site)
    assert (report.applied, report.left) == ([], 1)
    assert site.dump() == before


def test_a_retry_that_changes_nothing_says_why_again(site, decoder):
    """Without an upgrade everything stays as it was."""
    journal = Journal()
    site.take(JOURNAL, [journal.entry(20, made(20), create(b"one"), is_newer=True)])
    before = site.dump()
    report = retry(site)
    assert (report.applied, report.left, report.upto) == ([], 1, None)
    assert site.dump() == before


def test_one_entry_is_retried_with_those_that_wait_for_it(site, decoder):
    """Of other objects nothing is touched."""
    journal = Journal()
    one, two = made(20), made(21)
    for number, inode in ((20, one), (21, two)):
        site.take(JOURNAL, [journal.entry(number, inode, create(b"f%d" % number), is_newer=True)])
        site.take(JOURNAL, [journal.entry(number + 100, inode, Write(0, b"x"))])
    decoder.is_upgraded = True
    wanted = next(letter for letter in letters(site) if letter.inode == one)
    assert len(retry(site, only=wanted).applied) == 2
    assert {letter.inode for letter in letters(site)} == {two}


@pytest.mark.parametrize("is_one", [True, False])
def test_more_than_a_page_is_retried_page_by_page(site, decoder, is_one):
    """A transaction has a bounded number of dead letters; the next goes on where it ended."""
    journal = Journal()
    one = made(20)
    site.take(JOURNAL, [journal.entry(20, one, create(b"f"), is_newer=True)])
    for number in range(PAGE_LETTERS):
        site.take(JOURNAL, [journal.entry(100 + number, one, Write(number, b"x"))])
    decoder.is_upgraded = True
    only = letters(site)[0] if is_one else None
    first = retry(site, only=only)
    assert len(first.applied) == PAGE_LETTERS
    assert first.upto is not None
    assert len(retry(site, only=only, after=first.upto).applied) == 1
    assert letters(site) == []
    assert site.view.stat(one).size == PAGE_LETTERS


def test_a_removal_written_here_stops_an_add_that_is_still_a_dead_letter(memory_site, decoder):
    """What a removal has seen it removes, also where the add could not be decoded when the removal was written."""
    maker, here, there = (memory_site(number) for number in (1, 2, 3))
    (file,) = maker.do(CreateFile(1, b"f", 0, 0, 0, 0))
    maker.do(MakeLink(file.inode, 1, b"g"))
    maker.do(Remove(1, b"g"))
    for site in (here, there):
        site.pull(maker)
    # Another journal adds the link again, in words that only `there` understands.
    add = Journal().entry(maker.wall_us, file.inode, Link(ROOT_INODE, b"g"), is_newer=True)
    here.take(JOURNAL, [add])
    maker.do(MakeLink(file.inode, 1, b"g"))
    here.pull(maker)
    here.do(Remove(1, b"g"))
    decoder.is_upgraded = True
    retry_all(here)
    there.take(JOURNAL, [add])
    there.pull(here)
    there.pull(maker)
    assert list(here.listing()) == list(there.listing()) == [b"f"]
    for site in (maker, here, there):
        site.close()


def test_an_object_with_a_dead_letter_of_the_own_journal_takes_no_change(site, decoder):
    """A site that was set back to an older program refuses what would come after an entry of its own that it cannot read."""
    shard = shard_of(make_inode(site.journal.origin, 20), SHARDS)
    inode = make_inode(site.journal.origin, 20)
    payload = newer(encode_payload(SetAttr.only(mode=0o700)))
    made_payload = encode_payload(create(b"f"))
    rows = [
        NewRow(20, Op.CREATE, inode, made_payload, entry_crc32(1, shard, 1, 20, inode, Op.CREATE, made_payload)),
        NewRow(21, Op.SET_ATTR, inode, payload, entry_crc32(2, shard, 1, 21, inode, Op.SET_ATTR, payload)),
    ]
    site.take(site.journal, [Block.build(shard=shard, first_seq=1, rows=rows, seen=encode_cursors({}, SHARDS))])
    with pytest.raises(OperationRefused, match="deadletters retry") as refused:
        site.do(SetAttributes(inode, mode=0o600))
    assert refused.value.code == "EBUSY"
    decoder.is_upgraded = True
    retry_all(site)
    assert site.view.stat(inode).mode == 0o700
    site.do(SetAttributes(inode, mode=0o600))
    assert site.view.stat(inode).mode == 0o600


def test_keys_are_told_as_they_are_given():
    """A dead letter's key is what `--entry` takes."""
    assert str(EntryKey(SiteId(5), 7, Shard(1), 3)) == "5:0000000000000007/1/3"
