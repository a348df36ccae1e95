"""The log's format: golden bytes, cuts and flips at every byte, and the scan against a brute-force model."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl import wal
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.wal import (
    HEADER_BYTES,
    RECORD_HEAD_BYTES,
    HeaderTorn,
    HeaderVersionUnknown,
    RecordCodec,
    SegmentHeader,
    SegmentScan,
)

SALT = bytes(range(1, 17))
FIRST = 1000


def header(**changes):
    fields = {
        "journal": JournalId(SiteId(2), Incarnation(0x0123456789ABCDEF)),
        "cluster_id": "töst",
        "first_position": FIRST,
        "next_seqs": (1, 2, 3, 2**63),
        "last_timestamp_us": 1_700_000_000_000_000,
        "salt": SALT,
    }
    return SegmentHeader(**(fields | changes))


def segment(bodies, *, size=0, first=FIRST, salt=SALT, synced=None):
    """The record area of a segment, zeros to its size; each record tells the end of the one before as synced."""
    codec, area = RecordCodec(salt), bytearray()
    for i, body in enumerate(bodies):
        position = first + len(area)
        upto = position if synced is None else synced[i]
        area += codec.head(position, upto, memoryview(body)) + body
    return bytes(area).ljust(size, b"\0")


def scan(area, *, next_position=None, first=FIRST):
    """Run a scan over a record area to its end; the bodies found, and the scan."""
    file = bytes(HEADER_BYTES) + area
    scanner = SegmentScan(header(first_position=first), file_bytes=len(file), next_position=next_position)
    bodies, rounds = [], 0
    while (wanted := scanner.wanted) is not None:
        offset, length = wanted
        assert length > 0
        assert offset + length <= len(file)
        bodies += [bytes(record.body) for record in scanner.feed(file[offset : offset + length])]
        rounds += 1
        assert rounds < 10 * len(file), "the scan goes on for ever"
    return bodies, scanner


def test_header_layout_is_fixed():
    """A header's bytes are those of the table; what is on disks already can be read by every later program."""
    encoded = header().encode()
    assert len(encoded) == HEADER_BYTES
    assert encoded[:12].hex() == "434653525741 4c0a 01000000".replace(" ", "")
    assert int.from_bytes(encoded[12:16], "little") == zlib.crc32(encoded[:12] + encoded[16:])
    assert encoded[16:110].hex() == (
        "0200000000000000" "efcdab8967452301" "e803000000000000" "00401e18240a0600" + SALT.hex() + "0400" "0500"
        "0100000000000000" "0200000000000000" "0300000000000000" "0000000000000080" + "töst".encode().hex() + "00" * 5
    )  # fmt: skip
    assert not any(encoded[105:])


def test_record_layout_is_fixed():
    """A record's bytes are those of the table."""
    encoded = segment([b"body"], synced=[7])
    mark, length, crc32, synced = encoded[:4], encoded[4:8], encoded[8:12], encoded[12:20]
    assert mark == bytes([0x81, 0x82, 0x83, 0x84])
    assert (length.hex(), synced.hex(), encoded[20:]) == ("04000000", "0700000000000000", b"body")
    summed = SALT[4:] + FIRST.to_bytes(8, "little") + length + synced + b"body"
    assert int.from_bytes(crc32, "little") == zlib.crc32(summed)


@given(
    st.builds(
        SegmentHeader,
        journal=st.builds(JournalId, st.integers(1, 2047), st.integers(0, 2**64 - 1)),
        cluster_id=st.text(max_size=60),
        first_position=st.integers(0, 2**63),
        next_seqs=st.lists(st.integers(1, 2**63), min_size=1, max_size=256).map(tuple),
        last_timestamp_us=st.integers(0, 2**63),
        salt=st.binary(min_size=16, max_size=16),
    )
)
def test_headers_come_back(value):
    """What is encoded is decoded to the same."""
    assert SegmentHeader.decode(value.encode()) == value


def test_a_header_cut_at_any_byte_is_torn():
    """A header of which only a part reached the disk is never taken for one."""
    encoded = header().encode()
    whole = len(encoded.rstrip(b"\0"))
    for cut in range(whole):
        with pytest.raises(HeaderTorn):
            SegmentHeader.decode(encoded[:cut])
        with pytest.raises(HeaderTorn):
            SegmentHeader.decode(encoded[:cut].ljust(HEADER_BYTES, b"\0"))


def test_a_header_with_any_flipped_bit_is_refused():
    """Damage anywhere in a header is found, its padding included."""
    encoded = header().encode()
    for at in [*range(200), HEADER_BYTES - 1]:
        damaged = bytearray(encoded)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(HeaderTorn):
            SegmentHeader.decode(bytes(damaged))


def test_another_format_version_is_told_as_such(monkeypatch):
    """A segment of a later program is refused by its version, not taken for damage."""
    with monkeypatch.context() as later:
        later.setattr(wal, "VERSION", 2)
        encoded = header().encode()
    with pytest.raises(HeaderVersionUnknown, match="version 2"):
        SegmentHeader.decode(encoded)


def test_a_cut_at_any_byte_keeps_the_whole_records_before_it():
    """However many bytes of a run of records are at hand, the whole ones are found and the need of the rest is told."""
    area = segment([b"a" * 30, b"", b"b" * 5])
    ends = [50, 70, 95]
    for size in range(len(area) + 1):
        cut = RecordCodec(SALT).cut(memoryview(area)[:size], position=FIRST, room=len(area))
        whole = [end for end in ends if end <= size]
        assert len(cut.records) == len(whole)
        assert cut.end == FIRST + max(whole, default=0)
        assert not cut.is_bad
        rest = size - max(whole, default=0)
        if rest == 0:
            assert cut.wanted == 0
        elif rest < RECORD_HEAD_BYTES:
            assert cut.wanted == RECORD_HEAD_BYTES
        else:
            assert cut.wanted == ends[len(whole)] - max(whole, default=0)


def test_no_record_crosses_the_room():
    """A length that leads beyond where the segment ends is no record, however long the read could be."""
    area = segment([b"a" * 30])
    cut = RecordCodec(SALT).cut(memoryview(area)[:30], position=FIRST, room=49)
    assert (cut.records, cut.is_bad) == ([], True)


def test_a_record_is_valid_only_at_its_position_in_its_segment():
    """Bytes of a record at another position, or under another salt, are no record."""
    area = memoryview(segment([b"body"]))
    assert RecordCodec(SALT).cut(area, position=FIRST, room=24).records
    assert RecordCodec(SALT).cut(area, position=FIRST + 1, room=24).is_bad
    other = SALT[:4] + bytes(12)
    assert RecordCodec(other).mark == RecordCodec(SALT).mark
    assert RecordCodec(other).cut(area, position=FIRST, room=24).is_bad


def test_the_mark_is_never_zeros_or_text():
    """A search for the mark does not stumble over empty space or plain text."""
    for salt in (bytes(16), b"plain text salt."):
        assert min(RecordCodec(salt).mark) >= 0x80


BODIES = [b"one", b"second" * 9, b"", b"the last"]


def test_a_whole_segment_is_read_to_its_end():
    """Records are found up to the zeros behind them, or to the very last byte of the file."""
    for size in (0, 500):
        bodies, scanner = scan(segment(BODIES, size=size))
        assert bodies == BODIES
        assert scanner.end == FIRST + len(segment(BODIES))
        assert not scanner.is_damaged


def test_any_torn_byte_of_the_last_record_loses_only_that_record():
    """A last record of which any part did not reach the disk is cut, and what is left of it is told."""
    area = segment(BODIES)
    last = len(segment(BODIES[:-1]))
    for cut in range(last, len(area)):
        bodies, scanner = scan(area[:cut].ljust(500, b"\0"))
        assert bodies == BODIES[:-1]
        assert scanner.end == FIRST + last
        assert not scanner.is_damaged
        used = len(area[:cut].rstrip(b"\0"))
        assert scanner.used_upto == (HEADER_BYTES + used if used > last else HEADER_BYTES)


@pytest.mark.parametrize("scan_bytes", [64, 1 << 20])
def test_a_flipped_byte_before_a_synced_position_is_damage(monkeypatch, scan_bytes):
    """A byte that a later record proves to have been durable is damage; in the last record it is a torn tail."""
    monkeypatch.setattr(wal, "SCAN_BYTES", scan_bytes)
    area = segment(BODIES, size=300)
    last, end = len(segment(BODIES[:-1])), len(segment(BODIES))
    starts = [len(segment(BODIES[:n])) for n in range(len(BODIES))]
    for at in range(end):
        damaged = bytearray(area)
        damaged[at] ^= 0x40
        bodies, scanner = scan(bytes(damaged))
        record = max(n for n, start in enumerate(starts) if start <= at)
        assert bodies == BODIES[:record]
        assert scanner.end == FIRST + starts[record]
        assert scanner.is_damaged == (at < last)


def test_records_of_one_group_prove_nothing_about_each_other():
    """Records that were written together may reach the disk in any order: a hole among them is a torn tail."""
    begin = FIRST + len(segment(BODIES[:1]))
    area = bytearray(segment(BODIES, size=300, synced=[FIRST, begin, begin, begin]))
    area[len(segment(BODIES[:1])) + 3] ^= 1
    bodies, scanner = scan(bytes(area))
    assert bodies == BODIES[:1]
    assert not scanner.is_damaged
    assert scanner.used_upto == HEADER_BYTES + len(segment(BODIES))


def test_a_segment_that_another_follows_must_be_whole():
    """Every byte up to where the next segment begins was durable once; what is behind it does not matter."""
    area = segment(BODIES)
    reach = FIRST + len(area)
    for behind in (b"", bytes(100), b"\xff" * 100):
        bodies, scanner = scan(area + behind, next_position=reach)
        assert bodies == BODIES
        assert not scanner.is_damaged
    for at in range(len(area)):
        damaged = bytearray(area)
        damaged[at] ^= 0x10
        assert scan(bytes(damaged), next_position=reach)[1].is_damaged
        assert scan(area[:at], next_position=reach)[1].is_damaged
    assert scan(area, next_position=reach - 1)[1].is_damaged


def test_a_record_inside_a_payload_is_not_found():
    """Whole records, copied by someone who read the disk into data of theirs, prove nothing where they lie now."""
    first = segment([b"first"])
    stolen = segment([b"x", b"y" * 40], first=FIRST, synced=[FIRST, 2**62])
    area = bytearray(segment([b"first", b"...." + stolen + first], size=400))
    area[len(first) + 2] ^= 1
    bodies, scanner = scan(bytes(area))
    assert bodies == [b"first"]
    assert not scanner.is_damaged


def brute_force(area, first=FIRST):
    """The obvious model: try every offset."""
    codec, at, ends = RecordCodec(SALT), 0, []
    while (cut := codec.cut(memoryview(area)[at:], position=first + at, room=len(area) - at)).records:
        at = cut.end - first
        ends.append(at)
    proven = [
        record.synced_upto
        for offset in range(at, len(area))
        for record in codec.cut(memoryview(area)[offset:], position=first + offset, room=len(area) - offset).records
    ]
    return first + at, any(upto > first + at for upto in proven)


@given(
    bodies=st.lists(st.binary(max_size=150), min_size=1, max_size=8),
    damage=st.lists(st.tuples(st.integers(0, 800), st.integers(1, 255)), max_size=4),
    groups=st.lists(st.booleans(), min_size=8, max_size=8),
    scan_bytes=st.integers(25, 200),
    tail=st.integers(0, 100),
)
def test_a_scan_in_pieces_finds_what_a_look_at_every_byte_finds(bodies, damage, groups, scan_bytes, tail):
    """However the reads are cut, the scan's end and verdict are those of trying every offset of the whole."""
    synced, group = [], FIRST
    for n, starts_group in zip(range(len(bodies)), groups, strict=False):
        group = FIRST + len(segment(bodies[:n])) if starts_group else group
        synced.append(group)
    area = bytearray(segment(bodies, synced=synced)) + bytes(tail)
    for at, mask in damage:
        area[at % len(area)] ^= mask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wal, "SCAN_BYTES", scan_bytes)
        _, scanner = scan(bytes(area))
    assert (scanner.end, scanner.is_damaged) == brute_force(bytes(area))
    if not scanner.is_damaged:
        rest = bytes(area).rstrip(b"\0")
        assert max(scanner.used_upto - HEADER_BYTES, scanner.end - FIRST) == max(len(rest), scanner.end - FIRST)


@pytest.mark.parametrize(
    "change", [{"shards": 257}, {"id_bytes": wal.CLUSTER_ID_BYTES_MAX + 1}, {"id_bytes": 1, "text": b"\xff"}]
)
def test_a_header_with_a_right_sum_and_impossible_fields_is_no_header(change):
    """Whatever wrote it, it is told as a torn header, by the file's name, and not as an error of Python's."""
    made = bytearray(
        SegmentHeader(JournalId(SiteId(1), Incarnation(2)), "", 0, (1,), 0, bytes(wal.SALT_BYTES)).encode()
    )
    struct.pack_into("<HH", made, 64, change.get("shards", 1), change.get("id_bytes", 0))
    made[76:77] = change.get("text", b"\0")
    struct.pack_into("<I", made, 12, zlib.crc32(made[16:], zlib.crc32(made[:12])))
    with pytest.raises(HeaderTorn):
        SegmentHeader.decode(bytes(made))
