"""What lies on a simulated disk: the logs, read by a reader that trusts nothing a site says, and the store's sums."""

from __future__ import annotations

import contextlib
import json
from itertools import zip_longest
from pathlib import Path

from claudefs_repl.block import Block
from claudefs_repl.checkpoint import Cursors
from claudefs_repl.error import ReplError
from claudefs_repl.journal import JournalId
from claudefs_repl.observations import ShardSums
from claudefs_repl.wal import HEADER_BYTES, RECORD_HEAD_BYTES, RecordCodec, SegmentHeader, SegmentScan
from nodes.chaos.disk_logs import LogOnDisk, read_logs
from nodes.chaos.leftovers import read_store_sums
from nodes.journals import JOURNALS_DIR
from nodes.recovery import STORE_FILE
from tests.simulation.disk import SimDisk, parent_of

SEGMENT = ".seg"


def read_tails(disk: SimDisk) -> Cursors:
    """Where each log ends; a damaged one is given up as a whole, and holds nothing."""
    tails: dict[JournalId, list[int]] = {}
    damaged: set[JournalId] = set()
    names = [name for name in sorted(disk.files) if name.endswith(SEGMENT)]
    for name, following in zip_longest(names, names[1:]):
        data = bytes(disk.files[name].live)
        with contextlib.suppress(ReplError):
            header = SegmentHeader.decode(data[:HEADER_BYTES])
            seqs = tails.setdefault(header.journal, [seq - 1 for seq in header.next_seqs])
            is_last = following is None or parent_of(following) != parent_of(name)
            next_position = None if is_last else int(Path(following).stem)
            scan = SegmentScan(header, file_bytes=len(data), next_position=next_position)
            while (wanted := scan.wanted) is not None:
                for record in scan.feed(data[wanted[0] : sum(wanted)]):
                    block = Block(record.body)
                    seqs[block.shard] = max(seqs[block.shard], block.last_seq)
            if scan.is_damaged:
                damaged.add(header.journal)
    return {journal: tuple(seqs) for journal, seqs in tails.items() if journal not in damaged}


def proven_bytes(disk: SimDisk) -> list[tuple[str, int, int]]:
    """Bytes that later records prove to have been durable: file, first and last offset of each record of them."""
    proven: dict[str, int] = {}
    found = []
    for name in sorted(disk.files):
        if name.endswith(SEGMENT):
            data = bytes(disk.files[name].live)
            with contextlib.suppress(ReplError):
                header = SegmentHeader.decode(data[:HEADER_BYTES])
                body, log = memoryview(data)[HEADER_BYTES:], parent_of(name)
                cut = RecordCodec(header.salt).cut(body, position=header.first_position, room=len(body))
                proven[log] = max(proven.get(log, 0), *(record.synced_upto for record in cut.records), 0)
                for record in cut.records:
                    end = record.position + RECORD_HEAD_BYTES + len(record.body)
                    found.append((name, HEADER_BYTES - header.first_position, record.position, end))
    return [(name, at + begin, at + end - 1) for name, at, begin, end in found if end <= proven[parent_of(name)]]


def unload(disk: SimDisk, directory: Path) -> tuple[dict[JournalId, LogOnDisk], dict[JournalId, list[ShardSums]]]:
    """Lay the disk of a site that does not run out as files, and read its logs and its store's sums."""
    for name, content in disk.files.items():
        if name.startswith((f"{JOURNALS_DIR}/", STORE_FILE)):
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.live)
    logs = read_logs(directory)
    sums = read_store_sums(directory) if STORE_FILE in disk.files else {}
    return logs, sums


def read_set_aside(disk: SimDisk) -> set[tuple[int, int, int]]:
    """Entries of a former journal that a site made anew keeps in a file: incarnation, shard, seq."""
    found = set()
    for name, content in disk.files.items():
        if name.startswith("refused-"):
            incarnation = int(name.removeprefix("refused-").partition(".")[0], 16)
            for line in bytes(content.live).splitlines():
                entry = json.loads(line)
                found.add((incarnation, entry["shard"], entry["seq"]))
    return found
