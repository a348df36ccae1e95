"""What comes from the disk: log segments, key files, cluster.toml and a site's small files."""

from __future__ import annotations

import json
import random
import struct
import tempfile
import zlib
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

import trio

from claudefs_repl.block import Block
from claudefs_repl.error import ConfigInvalid, WalCorrupted, WorldError
from claudefs_repl.reincarnation import Restamped
from claudefs_repl.topology import ClusterConfig, SiteConfig
from claudefs_repl.wal import (
    HEADER_BYTES,
    RECORD_HEAD_BYTES,
    HeaderTorn,
    HeaderVersionUnknown,
    RecordCodec,
    SegmentHeader,
    SegmentScan,
)
from nodes.admin import MODE_FILE, read_pinned_mode
from nodes.bootstrap_build import SWITCH_FILE, finish_switch, log_bootstrap
from nodes.bootstrap_fetch import FETCH_FILE, read_fetch
from nodes.bootstrap_old import CLOSED_FILE, Closed, read_closed, write_closed
from nodes.config import load_cluster
from nodes.entry_log import EntryLog, ForeignLog
from nodes.event_reader import LogTail
from nodes.evidence import EVIDENCE_FILE, read_evidence, write_evidence
from nodes.key_files import KEY_FILE_BYTES_MAX, load_keys
from nodes.recovery import IDENTITY_FILE, read_identity
from nodes.snapshots import MANIFEST_NAME, SNAPSHOTS_DIR, Snapshot, read_snapshot, write_manifest
from tests.fuzz.engine import ROOT, Target
from tests.fuzz.memory_disk import MemoryStorage, run_now
from tests.fuzz.targets_wire import CURSORS, JOURNAL, OTHER, SHARDS, A, B, make_block

CLUSTER_ID = "fuzz"
JSON_WORDS = tuple(
    word.encode()
    for word in ("[" * 9, "{}", '{"a":', "null", "true", "-1", "0.5", "1e999", "NaN", "Infinity", "9" * 30, '"\\ud800"')
)


# --- the log ----------------------------------------------------------------------------------------------------------

SALT = bytes(range(16))
CODEC = RecordCodec(SALT)
HEADER = SegmentHeader(JOURNAL, CLUSTER_ID, 0, (1,) * SHARDS, 0, SALT)
SEGMENT_ROOM = 4096
"""Zeros behind what an input puts into a segment: in a real one, too, most of the file is not yet used."""


def records(groups: list[list[Block]], position: int = 0) -> bytes:
    """Records as the log writes them: all of a group tell what was synced before it."""
    written = bytearray()
    for group in groups:
        synced_upto = position
        for block in group:
            written += CODEC.head(position, synced_upto, block.encoded) + block.encoded
            position += RECORD_HEAD_BYTES + len(block.encoded)
    return bytes(written)


GROUPS = [[make_block(1, 2), make_block(3, 1)], [make_block(4, 3)], [make_block(7, 1, (200,))]]
RECORDS = records(GROUPS)


def read_header(data: bytes) -> None:
    """A header that passes encodes and decodes to itself."""
    header = SegmentHeader.decode(data.ljust(HEADER_BYTES, b"\0"))
    assert SegmentHeader.decode(header.encode()) == header


def mend_header(data: bytes) -> bytes:
    """The header's sum, made right."""
    padded = data.ljust(HEADER_BYTES, b"\0")[:HEADER_BYTES]
    crc32 = zlib.crc32(padded[16:], zlib.crc32(padded[:12]))
    return (padded[:12] + struct.pack("<I", crc32) + padded[16:]).rstrip(b"\0")


def mend_records(data: bytes) -> bytes:
    """The sum of each record that can be found, made right."""
    mended, at = bytearray(data), 0
    while len(mended) - at >= RECORD_HEAD_BYTES:
        length, _, synced_upto = struct.unpack_from("<IIQ", mended, at + 4)
        body = bytes(mended[at + RECORD_HEAD_BYTES : at + RECORD_HEAD_BYTES + length])
        mended[at : at + RECORD_HEAD_BYTES] = CODEC.head(at, synced_upto, memoryview(body))
        at += RECORD_HEAD_BYTES + len(body)
    return bytes(mended)


def scan_segment(data: bytes) -> None:
    """A scan ends, reads inside the file, and what it finds is what was there."""
    file_bytes = HEADER_BYTES + len(data)
    next_position = None if not data or data[-1] & 1 else len(data)
    scan, found = SegmentScan(HEADER, file_bytes=file_bytes, next_position=next_position), bytearray()
    while (wanted := scan.wanted) is not None:
        offset, length = wanted
        assert HEADER_BYTES <= offset < offset + length <= file_bytes
        for record in scan.feed(data[offset - HEADER_BYTES :][:length]):
            found += CODEC.head(record.position, record.synced_upto, record.body) + record.body
    assert bytes(found) == data[: len(found)]
    assert scan.end == len(found)
    assert scan.is_damaged or next_position in (None, scan.end)


def split_log(data: bytes) -> dict[str, bytes]:
    """An input as the files of a log: for each a number of bytes, a name's position, a header without its zeros, records."""
    files: dict[str, bytes] = {}
    at = 0
    while len(data) - at >= 8 and len(files) < 4:
        header_bytes, record_bytes, position = struct.unpack_from("<HHI", data, at)
        at += 8
        header = data[at : at + header_bytes][:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
        at += header_bytes
        written = data[at : at + record_bytes]
        at += record_bytes
        files[f"journals/1-00000000000000a1/{position:020d}.seg"] = header + written + bytes(SEGMENT_ROOM)
    return files


def join_log(*segments: tuple[int, bytes, bytes]) -> bytes:
    """The inverse of `split_log`."""
    return b"".join(
        struct.pack("<HHI", len(header), len(written), position) + header + written
        for position, header, written in segments
    )


def _fields(storage: MemoryStorage) -> dict[str, Any]:
    return {
        "storage": storage,
        "journal": JOURNAL,
        "cluster_id": CLUSTER_ID,
        "shard_count": SHARDS,
        "segment_bytes": HEADER_BYTES + 4096,
        "entropy": random.Random(0).randbytes,
    }


def open_log(storage: MemoryStorage) -> Awaitable[EntryLog]:
    return EntryLog.open(**_fields(storage))


async def read_log(storage: MemoryStorage) -> list[tuple[Any, ...]]:
    """Recover a log and read it through."""
    return await _read_through(await open_log(storage))


async def read_whole_part(storage: MemoryStorage) -> list[tuple[Any, ...]]:
    """Read through what is whole of a log."""
    log = await EntryLog.salvage(**_fields(storage))
    return [] if log is None else await _read_through(log)


async def _read_through(log: EntryLog) -> list[tuple[Any, ...]]:
    reader = log.reader(tuple(first - 1 for first in log.firsts))
    rows: list[tuple[Any, ...]] = []
    while blocks := await reader.read(bytes_max=700):
        rows += [(block.shard, *row) for block in blocks for row in _rows_of(block)]
    assert reader.cursors == log.tails
    await reader.close()
    await log.close()
    return rows


def _rows_of(block: Block) -> list[tuple[Any, ...]]:
    return list(zip(range(block.first_seq, block.last_seq + 1), block.timestamps, block.crcs, strict=True))


def recover_log(data: bytes) -> list[tuple[Any, ...]]:
    """A damaged log is refused and left as it was, or recovered, and then recovered to the same once more."""
    storage = MemoryStorage(split_log(data))
    before = {path: bytes(content) for path, content in storage.files.items()}
    try:
        rows: list[tuple[Any, ...]] = trio.run(read_log, storage)
    except (WalCorrupted, ForeignLog):
        assert before == {path: bytes(content) for path, content in storage.files.items()}
        raise
    assert trio.run(read_log, storage) == rows
    return rows


def damage_log(data: bytes) -> None:
    """What is read of a log that was damaged, and not forged with right sums, was once written to it."""
    assert genuine_rows().issuperset(recover_log(data))


def salvage_log(data: bytes) -> None:
    """Of a log with any damage what was written is read, or nothing; the files are as they were."""
    storage = MemoryStorage(split_log(data))
    before = {path: bytes(content) for path, content in storage.files.items()}
    assert genuine_rows().issuperset(trio.run(read_whole_part, storage))
    assert before == {path: bytes(content) for path, content in storage.files.items()}


def mend_log(data: bytes) -> bytes:
    """The sums of all headers and records, made right."""
    segments = []
    for path, content in split_log(data).items():
        position = int(path.rsplit("/", 1)[1].removesuffix(".seg"))
        header = mend_header(content[:HEADER_BYTES].rstrip(b"\0"))
        written = content[HEADER_BYTES:-SEGMENT_ROOM]
        first = struct.unpack_from("<Q", content, 32)[0]
        salt = content[48:64]
        segments.append((position, header, _mend_run(written, RecordCodec(salt), first)))
    return join_log(*segments)


def _mend_run(written: bytes, codec: RecordCodec, position: int) -> bytes:
    mended, at = bytearray(written), 0
    while len(mended) - at >= RECORD_HEAD_BYTES:
        length, _, synced_upto = struct.unpack_from("<IIQ", mended, at + 4)
        body = bytes(mended[at + RECORD_HEAD_BYTES : at + RECORD_HEAD_BYTES + length])
        if len(body) == length:
            where = (position + at) & ((1 << 64) - 1)
            mended[at : at + RECORD_HEAD_BYTES] = codec.head(where, synced_upto, memoryview(body))
        at += RECORD_HEAD_BYTES + len(body)
    return bytes(mended)


def log_seeds() -> list[bytes]:
    whole = HEADER.encode().rstrip(b"\0")
    half = len(records(GROUPS[:1]))
    second = SegmentHeader(JOURNAL, CLUSTER_ID, half, (4, 1), 1003, SALT).encode().rstrip(b"\0")
    foreign = SegmentHeader(OTHER, CLUSTER_ID, 0, (1,) * SHARDS, 0, SALT).encode().rstrip(b"\0")
    return [
        join_log((0, whole, RECORDS)),
        join_log((0, whole, records(GROUPS[:1])), (half, second, records(GROUPS[1:], half))),
        join_log((0, whole, RECORDS[:-9])),
        join_log((0, foreign, RECORDS)),
        join_log((0, b"", b"")),
        join_log((half, second, records(GROUPS[1:], half))),
    ]


@cache
def genuine_rows() -> frozenset[tuple[Any, ...]]:
    return frozenset((block.shard, *row) for group in GROUPS for block in group for row in _rows_of(block))


# --- small files ------------------------------------------------------------------------------------------------------


@cache
def place() -> Path:
    """A directory for those that are read from a path, gone with the process."""
    _keep.append(tempfile.TemporaryDirectory(prefix="claudefs-repl-fuzz-"))
    return Path(_keep[-1].name)


_keep: list[tempfile.TemporaryDirectory[str]] = []
SITE = SiteConfig("alpha", A, "127.0.0.1", 7001, Path("/nowhere"))
KEY_TABLE = {
    "version": 1,
    "site_id": 1,
    "use": {"2": "k1"},
    "keys": [
        {"key_id": "k1", "dialer": 1, "listener": 2, "secret": "ab" * 32},
        {"key_id": "k1", "dialer": 2, "listener": 1, "secret": "cd" * 32},
    ],
}


def read_key_file(data: bytes) -> None:
    """What passes is a ring of this site's keys."""
    path = place() / "alpha.json"
    path.write_bytes(data)
    path.chmod(0o600)
    ring = load_keys(path, SITE)
    assert ring.site_id == A


def read_cluster(data: bytes) -> None:
    """What passes has sites that nobody can mistake for each other.

    What is counted is this project's work: the parser, which is the standard library's, takes time with the square of the
    number of dots in one key. The file is its operator's.
    """
    path = place() / "cluster.toml"
    path.write_bytes(data)
    cluster = load_cluster(path)
    assert len({site.site_id for site in cluster.sites}) == len({site.name for site in cluster.sites}) > 0


def cluster_seeds() -> list[bytes]:
    small = (
        "[cluster]\nid = 'c'\nshards = 2\n[sites.alpha]\nid = 1\naddress = '127.0.0.1'\nport = 7001\n"
        "[sites.beta]\nid = 2\naddress = '::1'\nport = 7002\ndata_dir = 'b'\nclock_offset_s = -1.5\n"
        "[sites.beta.identity.alpha]\nuids = [{ from = 1000, to = 2000, count = 10 }]\nroot = 'refuse'\n"
    )
    sections = (
        "[failover]\nactive_active = false\ninitial_active = 'alpha'\n[conflicts]\ncommand = ['/bin/true', 'x']\n"
        "[replication]\ncompaction = 'on'\napplier_share = 0.5\n"
    )
    return [(ROOT / "cluster.toml").read_bytes(), small.encode(), (small + sections).encode()]


def small_file(path: str, read: Callable[[MemoryStorage], Any]) -> Callable[[bytes], None]:
    """A run that puts the input at a path and has it read."""

    def run(data: bytes) -> None:
        run_now(read(MemoryStorage({path: data})))

    return run


async def evidence(storage: Any) -> None:
    """What is understood is written again as it was."""
    found = await read_evidence(storage)
    await write_evidence(storage, found)
    assert await read_evidence(storage) == found


async def manifest(storage: Any) -> None:
    found = await read_snapshot(storage, "1")
    if found is not None:
        await write_manifest(storage, found)
        assert await read_snapshot(storage, "1") == found


async def identity(storage: Any) -> None:
    await read_identity(ClusterConfig(Path("cluster.toml"), CLUSTER_ID, SHARDS, Path("keys"), (SITE,)), SITE, storage)


async def pinned_mode(storage: Any) -> None:
    await read_pinned_mode(storage)


async def closed_journals(storage: Any) -> None:
    await read_closed(storage)


async def fetched_part(storage: Any) -> None:
    await read_fetch(storage, B)


async def switch_report(storage: Any) -> None:
    storage.files["bootstrap/x"] = bytearray()
    report = await finish_switch(storage)
    if report is not None:
        log_bootstrap(report, _Silent())  # type: ignore[arg-type]


class _Silent:
    def info(self, event: str, **fields: object) -> None:
        json.dumps(fields)

    warning = error = info


def event_lines(data: bytes) -> None:
    """Whatever lies in a log file, what is read of it are events."""
    path = place() / "events.jsonl"
    path.write_bytes(data)
    tail = LogTail(path, from_start=True)
    try:
        assert all(isinstance(event["time_us"], int) for event in tail.poll())
    finally:
        tail.close()


def _written(write: Callable[[MemoryStorage], Awaitable[None]], path: str) -> bytes:
    storage = MemoryStorage({})
    run_now(write(storage))  # type: ignore[arg-type]
    return bytes(storage.files[path])


def evidence_seeds() -> list[bytes]:
    value = {
        "format": 1,
        "durable": {str(journal): list(seqs) for journal, seqs in CURSORS.items()},
        "acked": {"2": [3, 0]},
        "told": {str(OTHER): [5, 9]},
        "current": {"2": f"{OTHER.incarnation:016x}"},
    }
    return [json.dumps(value).encode()]


MANIFEST_PATH = f"{SNAPSHOTS_DIR}/1/{MANIFEST_NAME}"
IDENTITY = {
    "format": 1,
    "cluster_id": CLUSTER_ID,
    "site": "alpha",
    "site_id": 1,
    "shards": SHARDS,
    "incarnation": "00000000000000a1",
    "is_ready": True,
}
FETCH = {
    "peer": 2,
    "name": "000000000001",
    "sha256": "ab" * 32,
    "size_bytes": 4096,
    "applied": {str(JOURNAL): [3, 0]},
    "done_bytes": 5,
}
REPORT = {
    "lost": [{"journal": str(JOURNAL), "shard": 0, "first_seq": 1, "last_seq": 2}],
    "refused": [{"shard": 0, "seq": 5, "reason": "no"}],
    "former_journal": str(JOURNAL),
    "from": "beta",
    "journal": str(OTHER),
    "fetched_bytes": 5,
    "journaled_again": 1,
}


def _json_target(name: str, path: str, read: Callable[[Any], Any], *seeds: object, **limits: int) -> Target:
    return Target(
        name,
        small_file(path, read),
        (WorldError, ConfigInvalid),
        lambda: [seed if isinstance(seed, bytes) else json.dumps(seed).encode() for seed in seeds],
        words=JSON_WORDS,
        **limits,  # type: ignore[arg-type]
    )


DISK = [
    Target(
        "wal_header",
        read_header,
        (HeaderTorn, HeaderVersionUnknown),
        lambda: [HEADER.encode().rstrip(b"\0")],
        mend=mend_header,
    ),
    Target(
        "wal_records",
        scan_segment,
        (),
        lambda: [RECORDS, RECORDS + b"\0" * 9, RECORDS[:-9]],
        mend=mend_records,
        words=(CODEC.mark,),
    ),
    Target(
        "log_recovery",
        recover_log,
        (WalCorrupted, ForeignLog),
        log_seeds,
        mend=mend_log,
        words=(CODEC.mark,),
        steps_base=4000,
        steps_per_byte=40,
    ),
    Target(
        "log_damage",
        damage_log,
        (WalCorrupted, ForeignLog),
        log_seeds,
        words=(CODEC.mark,),
        steps_base=4000,
        steps_per_byte=40,
    ),
    Target(
        "log_salvage",
        salvage_log,
        (ForeignLog,),
        log_seeds,
        words=(CODEC.mark,),
        steps_base=4000,
        steps_per_byte=40,
    ),
    Target(
        "key_file",
        read_key_file,
        (ConfigInvalid,),
        lambda: [json.dumps(KEY_TABLE).encode()],
        words=JSON_WORDS,
        memory_base=2 * KEY_FILE_BYTES_MAX,
    ),
    Target(
        "cluster_toml",
        read_cluster,
        (ConfigInvalid,),
        cluster_seeds,
        steps_base=6000,
        steps_per_byte=60,
        memory_base=1 << 20,
        memory_per_byte=512,
        words=tuple(
            word.encode()
            for word in (
                "=",
                "[",
                "]",
                "[[",
                "{",
                "}",
                "'",
                '"',
                '"""',
                "\n",
                ".",
                "nan",
                "inf",
                "-inf",
                "1e400",
                "9" * 30,
                "0x",
                "1979-05-27T07:32:00Z",
                "[sites.",
                "\\u0000",
                "\\uD800",
                "identity",
                "[" * 40,
                "a." * 40,
            )
        ),
    ),
    _json_target("evidence", EVIDENCE_FILE, evidence, *evidence_seeds()),
    _json_target(
        "manifest",
        MANIFEST_PATH,
        manifest,
        _written(lambda s: write_manifest(s, Snapshot("1", CURSORS, "ab" * 32)), MANIFEST_PATH),
    ),  # type: ignore[arg-type]
    _json_target("identity", IDENTITY_FILE, identity, IDENTITY),
    _json_target("pinned_mode", MODE_FILE, pinned_mode, {"pinned": "Offline"}),
    _json_target(
        "closed_journals",
        CLOSED_FILE,
        closed_journals,
        _written(lambda s: write_closed(s, Closed((JOURNAL,), Restamped(CURSORS, CURSORS))), CLOSED_FILE),
    ),
    _json_target("fetched_part", FETCH_FILE, fetched_part, FETCH),
    _json_target("switch_report", SWITCH_FILE, switch_report, REPORT),
    Target(
        "events",
        event_lines,
        (),
        lambda: [b'{"time_us": 1, "event": "site_ready"}\n{"time_us": 2}\n'],
        words=JSON_WORDS,
    ),
]
