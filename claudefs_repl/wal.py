"""The write-ahead log's format: segment headers, records, and the scan that tells a torn tail from damage.

A log is a run of records. A record's *position* is the number of record bytes before it in the whole log: headers and
what is unused at a segment's end are not counted. A log's files are segments, each one allocated in full, all zeros,
before its header is written; the header is on disk before the segment has its name, and its first record comes later.

Segment header, little endian, padded with zeros to HEADER_BYTES:

| bytes | field                                                                                |
|-------|--------------------------------------------------------------------------------------|
| 8     | magic, `CFSRWAL` and a line feed                                                     |
| 4     | format version, 1                                                                    |
| 4     | CRC-32 of all other bytes of the header                                              |
| 8     | origin                                                                               |
| 8     | incarnation                                                                          |
| 8     | position of the first record                                                         |
| 8     | greatest timestamp of all earlier records, microseconds                              |
| 16    | salt, random for each segment                                                        |
| 2     | number of shards                                                                     |
| 2     | bytes of the cluster id                                                              |
| 8 each| for each shard the seq of its next entry                                             |
| told  | cluster id, UTF-8                                                                    |

Record, little endian, one after another without a gap:

| bytes | field                                                                                |
|-------|--------------------------------------------------------------------------------------|
| 4     | mark, made of the salt's first bytes: what a search for records looks for            |
| 4     | bytes of the body                                                                    |
| 4     | CRC-32 of the rest of the salt, position (8), length (4), synced_upto (8), body      |
| 8     | synced_upto: the position that was known durable when the record was written         |
| told  | body: one encoded block                                                              |

Salt and position in the sum keep the bytes of an earlier use of the disk, and bytes that a client put into a payload,
from being taken for a record. `synced_upto` is what tells damage from a torn tail: a record that was written after an
earlier byte was durable proves that the byte was once right.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from claudefs_repl.error import CallerError, WorldError
from claudefs_repl.journal import SHARDS_MAX, Incarnation, JournalId, SiteId

VERSION = 1
HEADER_BYTES = 4096
"""Room for 256 shards and a cluster id; records begin on a page."""
SALT_BYTES = 16
SCAN_BYTES = 1 << 20
"""One read of a scan: long enough that the thread hop costs nothing, short enough not to matter to memory."""

_MAGIC = b"CFSRWAL\n"
_START = struct.Struct("<8sII")
_FIELDS = struct.Struct("<QQQQ16sHH")
_RECORD = struct.Struct("<4sIIQ")
_SUMMED = struct.Struct("<QIQ")
_ZEROS = bytes(SCAN_BYTES)
RECORD_HEAD_BYTES = _RECORD.size
CLUSTER_ID_BYTES_MAX = HEADER_BYTES - _START.size - _FIELDS.size - 8 * SHARDS_MAX


class HeaderTorn(WorldError):
    """The bytes are no header: half-written, never written, or damaged; the segment's other bytes tell which."""


class HeaderVersionUnknown(CallerError):
    """A header of another format version than this program's."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says about itself.

    Attributes:
        journal: whose entries the log holds.
        cluster_id: the cluster that the log belongs to.
        first_position: position of the segment's first record.
        next_seqs: for each shard the seq of its first entry in this segment or a later one.
        last_timestamp_us: greatest timestamp of the entries before this segment, 0 if there are none.
        salt: random bytes that no payload's author knows.
    """

    journal: JournalId
    cluster_id: str
    first_position: int
    next_seqs: tuple[int, ...]
    last_timestamp_us: int
    salt: bytes

    def encode(self) -> bytes:
        """The header as HEADER_BYTES bytes."""
        cluster_id = self.cluster_id.encode()
        assert len(self.salt) == SALT_BYTES
        assert len(cluster_id) <= CLUSTER_ID_BYTES_MAX
        shards = len(self.next_seqs)
        fields = _FIELDS.pack(
            *self.journal, self.first_position, self.last_timestamp_us, self.salt, shards, len(cluster_id)
        )
        rest = b"".join((fields, struct.pack(f"<{shards}Q", *self.next_seqs), cluster_id))
        rest = rest.ljust(HEADER_BYTES - _START.size, b"\0")
        return _START.pack(_MAGIC, VERSION, _header_sum(VERSION, rest)) + rest

    @classmethod
    def decode(cls, encoded: bytes) -> SegmentHeader:
        """The inverse of `encode`.

        Raises:
            HeaderTorn: the bytes are not a whole header.
            HeaderVersionUnknown: another program's format.
        """
        if len(encoded) < HEADER_BYTES:
            raise HeaderTorn("the file is shorter than a header")
        magic, version, crc32 = _START.unpack_from(encoded)
        if magic != _MAGIC or version == 0:
            raise HeaderTorn("there is no magic")
        is_whole = _header_sum(VERSION, encoded[_START.size : HEADER_BYTES]) == crc32
        if version != VERSION and not is_whole:
            raise HeaderVersionUnknown(f"it has format version {version}; this program knows version {VERSION}")
        if version != VERSION or not is_whole:
            raise HeaderTorn("the checksum does not match")
        origin, incarnation, position, timestamp_us, salt, shards, id_bytes = _FIELDS.unpack_from(encoded, _START.size)
        at = _START.size + _FIELDS.size
        if shards > SHARDS_MAX or id_bytes > CLUSTER_ID_BYTES_MAX:
            raise HeaderTorn(f"{shards} shards and a cluster id of {id_bytes} bytes are more than there can be")
        next_seqs = struct.unpack_from(f"<{shards}Q", encoded, at)
        at += 8 * shards
        try:
            cluster_id = encoded[at : at + id_bytes].decode()
        except UnicodeDecodeError as error:
            raise HeaderTorn("the cluster id is not UTF-8") from error
        return cls(
            journal=JournalId(SiteId(origin), Incarnation(incarnation)),
            cluster_id=cluster_id,
            first_position=position,
            next_seqs=next_seqs,
            last_timestamp_us=timestamp_us,
            salt=salt,
        )


def _header_sum(version: int, rest: bytes) -> int:
    return zlib.crc32(rest, zlib.crc32(_START.pack(_MAGIC, version, 0)[:-4]))


class Record(NamedTuple):
    """One valid record: where it is, what it proves, what it holds."""

    position: int
    synced_upto: int
    body: memoryview


class Cut(NamedTuple):
    """What a run of bytes holds.

    Attributes:
        records: the valid records, in order.
        end: position behind the last of them.
        wanted: bytes that a read from `end` needs at least to tell more; 0 if the bytes end with a record.
        is_bad: what is at `end` is no record, whatever follows.
    """

    records: list[Record]
    end: int
    wanted: int
    is_bad: bool


class RecordCodec:
    """Writes and reads the records of one segment: what depends on its salt is computed once."""

    __slots__ = ("_salt_sum", "mark")

    def __init__(self, salt: bytes) -> None:
        # The high bit of each byte keeps the mark out of zeros and of ASCII text, where a search would stumble over it.
        self.mark = bytes(byte | 0x80 for byte in salt[:4])
        self._salt_sum = zlib.crc32(salt[4:])

    def head(self, position: int, synced_upto: int, body: memoryview) -> bytes:
        """What goes before a body at a position."""
        length = len(body)
        return _RECORD.pack(self.mark, length, self._sum(position, length, synced_upto, body), synced_upto)

    def _sum(self, position: int, length: int, synced_upto: int, body: memoryview) -> int:
        return zlib.crc32(body, zlib.crc32(_SUMMED.pack(position, length, synced_upto), self._salt_sum))

    def cut(self, data: memoryview, *, position: int, room: int) -> Cut:
        """The records at the start of some bytes.

        Args:
            data: bytes of the segment.
            position: the position that they begin at.
            room: bytes from there to where the segment, or what is durable of it, ends; no record crosses that.
        """
        records: list[Record] = []
        at, size = 0, len(data)
        unpack, mark = _RECORD.unpack_from, self.mark
        while size - at >= RECORD_HEAD_BYTES:
            found, length, crc32, synced_upto = unpack(data, at)
            start = at + RECORD_HEAD_BYTES
            end = start + length
            if found != mark or end > room:
                return Cut(records, position + at, 0, True)
            if end > size:
                return Cut(records, position + at, end - at, False)
            body = data[start:end]
            if self._sum(position + at, length, synced_upto, body) != crc32:
                return Cut(records, position + at, 0, True)
            records.append(Record(position + at, synced_upto, body))
            at = end
        if at == size:
            return Cut(records, position + at, 0, False)
        return Cut(records, position + at, RECORD_HEAD_BYTES, room - at < RECORD_HEAD_BYTES)


class SegmentScan:
    """Recovery's reading of one segment, sans-IO: it says which bytes it wants and is fed them until it wants none.

    It finds the longest run of valid records. In a segment that another one follows, the run must reach to where that
    one begins. In the last segment the bytes behind the run are searched for later records that prove that what broke
    the run is damage.

    Attributes:
        end: position behind the valid run.
        proven_upto: greatest `synced_upto` of any valid record behind the run, 0 if none.
        used_upto: where the last byte that is not zero is, as an offset in the file, when `end` is the log's end.
        is_damaged: bytes at `end` that were once durable are wrong.
    """

    def __init__(self, header: SegmentHeader, *, file_bytes: int, next_position: int | None) -> None:
        """Begin.

        Args:
            header: the segment's.
            file_bytes: length of its file.
            next_position: where the following segment begins, None if this is the last.
        """
        self._codec = RecordCodec(header.salt)
        self._first = header.first_position
        self._must_reach = next_position
        limit = file_bytes if next_position is None else HEADER_BYTES + next_position - header.first_position
        self._limit = min(limit, file_bytes)
        self._at = HEADER_BYTES
        self._length = SCAN_BYTES
        self._is_searching = False
        self.end = header.first_position
        self.proven_upto = 0
        self.used_upto = HEADER_BYTES

    @property
    def wanted(self) -> tuple[int, int] | None:
        """Offset and length of the bytes to feed next, None when the scan is complete."""
        length = min(self._length, self._limit - self._at)
        return (self._at, length) if length > 0 and not self._is_proven else None

    @property
    def is_damaged(self) -> bool:
        """Whether the valid run ends where it did not end when it was written."""
        return self._is_proven or (self._must_reach is not None and self.end != self._must_reach)

    @property
    def _is_proven(self) -> bool:
        return self.proven_upto > self.end

    def feed(self, data: bytes) -> Sequence[Record]:
        """Take the wanted bytes; the records that they add to the valid run."""
        if self._is_searching:
            self._search(data)
            return ()
        cut = self._codec.cut(memoryview(data), position=self.end, room=self._limit - self._at)
        self._at += cut.end - self.end
        self.end = cut.end
        self._length = max(SCAN_BYTES, cut.wanted)
        if cut.is_bad:
            if self._must_reach is not None:
                self._limit = self._at
            self._is_searching = True
            self._length = SCAN_BYTES
        return cut.records

    def _search(self, data: bytes) -> None:
        """Look for records at any offset of these bytes, and for bytes that are not zero."""
        if data != _ZEROS[: len(data)]:
            self.used_upto = self._at + len(data.rstrip(b"\0"))
            view, mark = memoryview(data), self._codec.mark
            found = data.find(mark)
            while found >= 0 and not self._is_proven:
                offset = self._at + found
                position = self._first + offset - HEADER_BYTES
                cut = self._codec.cut(view[found:], position=position, room=self._limit - offset)
                if cut.records:
                    self.proven_upto = max(self.proven_upto, *[record.synced_upto for record in cut.records])
                elif cut.wanted and not cut.is_bad:
                    # It may be a record that goes on behind these bytes: read again, from where it begins.
                    self._at, self._length = offset, max(SCAN_BYTES, cut.wanted)
                    return
                found = data.find(mark, found + max(1, cut.end - position))
        at_limit = self._at + len(data) == self._limit
        # A mark may lie across the end of these bytes.
        self._at += len(data) if at_limit else len(data) - len(self._codec.mark) + 1
        self._length = SCAN_BYTES
