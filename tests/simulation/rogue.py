"""A rogue: somebody with a site's keys, in its place while it is down, who breaks the rules of a conduit one by one.

Nothing that it sends may take effect. Each trick says what it must be answered with; what is answered otherwise is told.
"""

from __future__ import annotations

import enum
from contextlib import suppress

import trio

from claudefs_repl.batch_auth import BatchAuthenticator, BatchTag
from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import cursor_of, encode_cursors
from claudefs_repl.journal import Inode, JournalId, Op, Shard, SiteId, entry_crc32, make_inode, shard_of
from claudefs_repl.operations import SetXattr
from claudefs_repl.topology import SiteConfig
from nodes.link import LINK_ERRORS, Link, dial
from nodes.seams import Entropy
from protocol.handshake import LocalIdentity, Role
from protocol.keys import KeyRing
from protocol.messages import Ack, Batch, Message, Nack, Tails, Welcome, encode_message
from protocol.payload import encode_payload

TIMEOUT_S = 5.0
"""A site answers a conduit's first batch at once."""
FAR_AHEAD_US = 86_400_000_000 * 365
CONTENT = b"forged"


class Trick(enum.Enum):
    """What a rogue does, of which only the last is allowed."""

    WRONG_TAG = "a batch has the tag of another"
    ALTERED = "a bit of a sealed frame is turned"
    REPLAYED = "a sealed frame comes twice"
    BATCH_SKIPPED = "a batch number is left out"
    OTHERS_TAILS = "it tells where another site's journal ends"
    GAP = "a batch does not follow what is there"
    STAMP_AHEAD = "a stamp is a year ahead"
    ANOTHER_PAST = "another entry comes in the place of one that is there"
    DUPLICATE = "what is there comes again"


NACKS = {Trick.GAP: "gap", Trick.STAMP_AHEAD: "clock_drift"}
"""The codes of the nacks that are due; otherwise the conduit must end without one."""
AGAIN = (Trick.ANOTHER_PAST, Trick.DUPLICATE)
"""What is played on an entry that is there: the last one of a shard, whose checksum the site tells."""


async def play(
    trick: Trick,
    *,
    identity: LocalIdentity,
    keys: KeyRing,
    local_address: str,
    peer: SiteConfig,
    now_us: int,
    entropy: Entropy,
) -> str | None:
    """Connect as a site and play a trick on its peer; what was wrong about the answer, None if nothing was.

    Raises:
        OSError, trio.TooSlowError, PeerRefused, ProtocolViolation, LinkClosed: there was no conduit to play it on.
    """
    link = await dial(
        identity=identity,
        local_address=local_address,
        peer=peer,
        role=Role.CONDUIT,
        keys=keys,
        entropy=entropy,
        timeout_s=TIMEOUT_S,
    )
    try:
        with trio.fail_after(TIMEOUT_S):
            welcome = await link.expect(Welcome)
        journal = JournalId(identity.site_id, identity.incarnation)
        start = cursor_of(welcome.received, journal, identity.shard_count)
        if trick in AGAIN and not any(welcome.last_crcs):
            return None
        answers = await _converse(link, trick, journal, start, welcome.last_crcs, now_us)
        return _judge(trick, journal, start, answers)
    finally:
        await link.aclose()


async def _converse(
    link: Link, trick: Trick, journal: JournalId, start: tuple[int, ...], crcs: tuple[int, ...], now_us: int
) -> list[Message]:
    """Play, and ask once more as an honest site does: who still acknowledges that has not ended the conduit."""
    honest = Tails({journal: start}, now_us)
    message = honest if trick is Trick.REPLAYED else _broken(link, trick, journal, start, crcs, now_us)
    sealed = _seal(link, message)
    if trick is Trick.ALTERED:
        sealed[len(sealed) // 2] ^= 1
    answers: list[Message] = []
    if trick in (Trick.REPLAYED, Trick.DUPLICATE):
        await link._stream.send_all(sealed)
        answers += await _answers(link, upto=Ack)
        if trick is Trick.DUPLICATE:
            sealed.clear()
    # What ended the conduit already is in the answers.
    with suppress(*LINK_ERRORS):
        await link._stream.send_all(sealed + _seal(link, honest))
    return [*answers, *await _answers(link, upto=Ack if trick is Trick.DUPLICATE else None)]


def _seal(link: Link, message: Message) -> bytearray:
    return bytearray(b"".join(link.session.sealer.seal(encode_message(message))))


def _broken(
    link: Link, trick: Trick, journal: JournalId, start: tuple[int, ...], crcs: tuple[int, ...], now_us: int
) -> Message:
    if trick is Trick.OTHERS_TAILS:
        others = JournalId(SiteId(journal.origin % 2 + 1), journal.incarnation)
        return Tails({others: tuple(seq + 1 for seq in start)}, now_us)
    # What the peer has trimmed it cannot compare.
    shard = max(range(len(start)), key=lambda one: (any(crcs[one : one + 1]), start[one]))
    first = start[shard] if trick in AGAIN else start[shard] + (3 if trick is Trick.GAP else 1)
    stamp_us = now_us + (FAR_AHEAD_US if trick is Trick.STAMP_AHEAD else 0)
    crc32 = crcs[shard] if trick is Trick.DUPLICATE else None
    block = _forge(journal.origin, Shard(shard), first, stamp_us, len(start), crc32)
    batch_seq = 2 if trick is Trick.BATCH_SKIPPED else 1
    tag = BatchAuthenticator(link.session.batch_key, journal.origin).sign_body(journal.origin, batch_seq, block.body)
    if trick is Trick.WRONG_TAG:
        tag = BatchTag(tag.bytes[:-1] + bytes([tag.bytes[-1] ^ 1]))
    return Batch(*journal, batch_seq, block.first_seq, block.last_seq, tag, block)


def _forge(origin: SiteId, shard: Shard, first_seq: int, stamp_us: int, shard_count: int, crc32: int | None) -> Block:
    """A block of one entry that no client asked for, sound in itself unless it is to have the checksum of another."""
    inode = next(
        candidate
        for candidate in (make_inode(origin, stamp_us + step) for step in range(1 << 16))
        if shard_of(candidate, shard_count) == shard
    )
    payload = encode_payload(SetXattr(b"user.forged", CONTENT))
    own_crc32 = entry_crc32(first_seq, shard, origin, stamp_us, inode, Op.SET_XATTR, payload)
    row = NewRow(stamp_us, Op.SET_XATTR, Inode(inode), payload, own_crc32 if crc32 is None else crc32)
    return Block.build(shard=shard, first_seq=first_seq, rows=[row], seen=encode_cursors({}, shard_count))


async def _answers(link: Link, *, upto: type[Message] | None) -> list[Message]:
    """What comes until the link ends or is silent, or up to a message of a kind."""
    answers: list[Message] = []
    try:
        with trio.fail_after(TIMEOUT_S):
            while upto is None or not any(isinstance(answer, upto) for answer in answers):
                answers.append(await link.receive())
    except LINK_ERRORS:
        pass
    return answers


def _judge(trick: Trick, journal: JournalId, start: tuple[int, ...], answers: list[Message]) -> str | None:
    what = f"site {journal.origin} was played: {trick.value}"
    acks = [answer for answer in answers if isinstance(answer, Ack)]
    nacks = [answer.code for answer in answers if isinstance(answer, Nack)]
    if any(ack.received.get(journal, start) != start for ack in acks):
        return f"{what}: it was taken"
    due = [NACKS[trick]] if trick in NACKS else []
    if nacks != due:
        return f"{what}: the answer is {nacks}, not {due}"
    if trick is Trick.DUPLICATE:
        return None if len(acks) > 1 else f"{what}: it was not acknowledged again"
    # Before a nack, and to what is replayed when it came first, there is an ack.
    goes_on = len(acks) > (trick in NACKS or trick is Trick.REPLAYED)
    return f"{what}: the conduit goes on" if goes_on else None
