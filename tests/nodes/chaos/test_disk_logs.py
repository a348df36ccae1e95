"""The reader of logs that trusts nothing a site says."""

from __future__ import annotations

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.journal import Incarnation, JournalId, Op, SiteId, entry_crc32, make_inode
from claudefs_repl.wal import SALT_BYTES, RecordCodec, SegmentHeader
from nodes.chaos.disk_logs import read_logs

JOURNAL = JournalId(SiteId(1), Incarnation(7))
UNKNOWN_PAYLOAD = b"\x92\x63\xc4\x01x"


def test_an_entry_of_an_unknown_payload_is_in_its_place(tmp_path):
    """What a later program wrote has no content for this one, and is no damage."""
    inode = make_inode(SiteId(1), 1000)
    crc32 = entry_crc32(1, 0, JOURNAL.origin, 1000, inode, Op.CREATE, UNKNOWN_PAYLOAD)
    row = NewRow(1000, Op.CREATE, inode, UNKNOWN_PAYLOAD, crc32)
    block = Block.build(shard=0, first_seq=1, rows=[row], seen=encode_cursors({}, 1))
    header = SegmentHeader(JOURNAL, "test", 0, (1,), 0, bytes(SALT_BYTES))
    record = RecordCodec(header.salt).head(0, 0, memoryview(block.encoded)) + bytes(block.encoded)
    directory = tmp_path / "journals" / f"1-{JOURNAL.incarnation:016x}"
    directory.mkdir(parents=True)
    (directory / "00000000000000000000.seg").write_bytes(header.encode() + record)
    (log,) = read_logs(tmp_path).values()
    assert (log.tails, log.damage) == ((1,), ())
    assert [(entry.is_intact, entry.content_crc32) for entry in log.entries] == [(True, None)]
