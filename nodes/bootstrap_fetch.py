"""Asking the peers and fetching a snapshot: the part of a bootstrap that goes over the network, and can be gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from claudefs_repl.checkpoint import SEQ_MAX, Cursors
from claudefs_repl.error import WorldError
from claudefs_repl.journal import JournalId, SiteId
from claudefs_repl.reincarnation import Holdings, Restamped
from claudefs_repl.topology import SiteConfig
from nodes.client import SiteUnreachable
from nodes.entry_log import EntryLog
from nodes.queries import PeerQueries, PeerUnreachable
from nodes.seams import File, Storage, WallClock
from nodes.small_json import parse_json
from nodes.snapshots import cursors_from_json, cursors_to_json, sha256_of

BOOTSTRAP_DIR = "bootstrap"
PART_FILE = f"{BOOTSTRAP_DIR}/snapshot.part"
FETCH_FILE = f"{BOOTSTRAP_DIR}/fetch.json"
ASK_TIMEOUT_S = 15.0
OFFER_TIMEOUT_S = 900.0
"""A peer may have to take a snapshot first, which copies its whole view."""
PART_TIMEOUT_S = 60.0
NOTE_BYTES = 8 << 20
"""How much is fetched between two notes of how far it is: so much is fetched again after a crash."""
BEGIN_AGAIN_MAX = 3

Progress = Callable[[int, int], None]
"""Told the bytes that are here and those there are in all."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer answered: what it holds, and how far its clock is ahead of this site's, microseconds."""

    holdings: Holdings
    clock_offset_us: int


async def ask_holdings(queries: PeerQueries, peer: SiteConfig, shards: int, wall_clock: WallClock) -> Answer:
    """Ask one peer what it holds.

    Raises:
        PeerUnreachable: it cannot be asked, or its answer makes no sense.
    """
    asked_us = wall_clock.now_us()
    answer = await queries.ask(peer, "holdings", {}, timeout_s=ASK_TIMEOUT_S)
    try:
        holdings = Holdings(
            journal=JournalId.parse(answer["journal"]),
            received=_cursors(answer["received"], shards),
            firsts=_cursors(answer["firsts"], shards),
            told=_cursors(answer["told"], shards),
            timestamp_us=_whole(answer["timestamp_us"]),
            restamped=Restamped(*(_cursors(answer.get(f"restamped_{end}", {}), shards) for end in ("after", "upto"))),
        )
        if holdings.journal.origin != peer.site_id or holdings.journal not in holdings.firsts:
            raise ValueError("not its own journal")
        offset_us = _whole(answer["wall_us"]) - (asked_us + wall_clock.now_us()) // 2
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PeerUnreachable(f"site {peer.name}: its answer makes no sense ({error!r})") from error
    return Answer(holdings, offset_us)


def _cursors(value: Any, shards: int) -> Cursors:
    cursors = cursors_from_json(value)
    if any(len(seqs) != shards for seqs in cursors.values()):
        raise ValueError("cursors of other shards")
    return cursors


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= SEQ_MAX:
        raise ValueError(f"not a count: {value!r:.60}")
    return value


async def find_common(queries: PeerQueries, peer: SiteConfig, log: EntryLog, shard: int, held_seq: int) -> int:
    """The last seq of a shard at which a log of this site's journal and a peer's replica of it have the same entry.

    They differ behind it if this site's disk was restored from an old copy and the site wrote on. What is on neither disk
    any more counts as the same.

    Args:
        queries: to the peer.
        peer: who holds the shard up to held_seq.
        log: the site's own.
        shard: which.
        held_seq: the last seq that the peer holds.

    Raises:
        PeerUnreachable: the peer cannot be asked, or its answer makes no sense.
    """

    async def is_same(seq: int) -> bool:
        args = {"journal": str(log.journal), "shard": shard, "seq": seq}
        theirs = (await queries.ask(peer, "entry_crc", args, timeout_s=ASK_TIMEOUT_S)).get("crc32")
        if type(theirs) is not int:
            raise PeerUnreachable(f"site {peer.name}: its answer makes no sense")
        ours = await log.crc_at(shard, seq)
        return not theirs or not ours or theirs == ours

    last = min(held_seq, log.tails[shard])
    if last == 0 or await is_same(last):
        return last
    same, other = 0, last
    while other - same > 1:
        middle = (same + other) // 2
        if await is_same(middle):
            same = middle
        else:
            other = middle
    return same


@dataclass(slots=True)
class Fetch:
    """A snapshot that is being fetched, as FETCH_FILE keeps it; `done_bytes` of PART_FILE are on disk."""

    peer: int
    name: str
    sha256: str
    size_bytes: int
    applied: dict[str, list[int]]
    done_bytes: int = 0

    @property
    def cursors(self) -> Cursors:
        """What it has applied."""
        return cursors_from_json(self.applied)


async def fetch_snapshot(
    queries: PeerQueries, peer: SiteConfig, storage: Storage, needs: Cursors, shards: int, progress: Progress
) -> Fetch:
    """Have a whole snapshot of a peer in PART_FILE; what an earlier run has fetched of the same one is not fetched again.

    Raises:
        SiteUnreachable: the peer cannot be asked, or not for long enough; another run goes on.
        WorldError: what came is not what was promised, or the peer has none that would do.
        DiskFull: there is no room for it.
    """
    await storage.make_dir(BOOTSTRAP_DIR)
    for _ in range(BEGIN_AGAIN_MAX):
        try:
            fetch = await _begin(queries, peer, storage, needs, shards)
            is_whole = await _fetch_parts(queries, peer, storage, fetch, progress)
        except PeerUnreachable as error:
            raise SiteUnreachable(f"{error}; what was fetched is kept: run the same command again to go on") from error
        if is_whole and await sha256_of(storage, PART_FILE) == fetch.sha256:
            return fetch
        await storage.remove(FETCH_FILE)
    raise WorldError(
        f"the snapshot of site {peer.name} was gone or damaged {BEGIN_AGAIN_MAX} times; run the command again, "
        f"or fetch from another peer"
    )


async def _begin(queries: PeerQueries, peer: SiteConfig, storage: Storage, needs: Cursors, shards: int) -> Fetch:
    begun = await read_fetch(storage, peer.site_id)
    args: dict[str, Any] = {"needs": cursors_to_json(needs), "begun": None if begun is None else begun.name}
    offer = await queries.ask(peer, "snapshot_offer", args, timeout_s=OFFER_TIMEOUT_S)
    try:
        fetch = Fetch(
            peer.site_id,
            str(offer["name"]),
            str(offer["sha256"]),
            _whole(offer["bytes"]),
            cursors_to_json(_cursors(offer["applied"], shards)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PeerUnreachable(f"site {peer.name}: its answer makes no sense ({error!r})") from error
    if begun is not None and (begun.name, begun.sha256) == (fetch.name, fetch.sha256):
        return begun
    await storage.remove(PART_FILE)
    file = await storage.create(PART_FILE, fetch.size_bytes)
    await file.close()
    await _note(storage, fetch)
    return fetch


async def read_fetch(storage: Storage, peer: SiteId) -> Fetch | None:
    """What was noted of a fetch from a peer; None if nothing was, or nothing that can be understood."""
    content = await storage.read_file(FETCH_FILE)
    if content is None:
        return None
    try:
        fetch = Fetch(**parse_json(content))
        _check_fetch(fetch)
    except (ValueError, TypeError, AttributeError):
        return None
    return fetch if fetch.peer == peer else None


def _check_fetch(fetch: Fetch) -> None:
    """Raises ValueError, TypeError or AttributeError for fields that `_note` would not have written."""
    _whole(fetch.peer)
    if [type(fetch.name), type(fetch.sha256)] != [str, str]:
        raise ValueError("a snapshot has a name and a digest")
    if _whole(fetch.done_bytes) > _whole(fetch.size_bytes):
        raise ValueError("more is done than there is")
    cursors_from_json(fetch.applied)


async def _note(storage: Storage, fetch: Fetch) -> None:
    await storage.replace_file(FETCH_FILE, json.dumps(asdict(fetch)).encode())


async def _fetch_parts(
    queries: PeerQueries, peer: SiteConfig, storage: Storage, fetch: Fetch, progress: Progress
) -> bool:
    """Whether all of it is here; if not, the peer no longer has it."""
    file = await storage.open(PART_FILE)
    noted_bytes = at = fetch.done_bytes
    try:
        while at < fetch.size_bytes:
            progress(at, fetch.size_bytes)
            args = {"name": fetch.name, "offset": at}
            part = await queries.ask(peer, "snapshot_part", args, timeout_s=PART_TIMEOUT_S)
            data = _data_of(part, fetch.size_bytes - at)
            if data is None:
                return False
            await file.write(at, [data], sync=False)
            at += len(data)
            if at - noted_bytes >= NOTE_BYTES or at == fetch.size_bytes:
                noted_bytes = await _note_progress(storage, file, fetch, at)
    finally:
        await file.close()
    progress(at, fetch.size_bytes)
    return True


async def _note_progress(storage: Storage, file: File, fetch: Fetch, at: int) -> int:
    await file.sync()
    fetch.done_bytes = at
    await _note(storage, fetch)
    return at


def _data_of(part: Mapping[str, Any], room: int) -> bytes | None:
    data = part.get("data")
    return data if isinstance(data, bytes) and 0 < len(data) <= room and part.get("gone") is False else None
