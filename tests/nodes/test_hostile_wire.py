"""Hostile connections against a real listener on real sockets: each is refused, none changes anything."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import struct
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import pytest
import trio

from claudefs_repl.admission import KINDS_MAX, PEER_HALF_OPEN_MAX
from claudefs_repl.batch_auth import BatchTag
from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import DiskFull, NotWritable, PeerRefused, ProtocolViolation
from claudefs_repl.journal import Incarnation, JournalId, Op, SiteId, entry_crc32
from claudefs_repl.topology import RateLimitConfig
from nodes.dialing import LiveLinks
from nodes.link import LINK_ERRORS
from nodes.listener import LINKS_MAX
from nodes.storage import DiskStorage
from nodes.write_gate import DISK_FULL
from protocol.frames import HANDSHAKE_BYTES_MAX
from protocol.handshake import DialerHandshake, Role, refusal_frame
from protocol.keys import KeyRing, PairKey
from protocol.messages import Ack, Goodbye, Nack, Tails, Welcome, encode_message
from tests.nodes.hostile_site import (
    GENEROUS,
    JOURNAL,
    OTHERS,
    QUICK,
    SECRETS,
    SHARDS,
    A,
    B,
    C,
    Tamperer,
    batch,
    block,
    closed,
    ended,
    former_batch,
    identity,
    ring,
    row,
    serve,
)


@pytest.fixture
async def site(tmp_path, nursery):
    async with aclosing(serve(tmp_path, nursery, GENEROUS)) as sites:
        yield await anext(sites)


async def test_an_honest_conduit_is_served(site):
    """The same steps without a fault: a welcome, a batch, an ack of what is durable."""
    link = await site.dial()
    welcome = await link.expect(Welcome)
    assert welcome.received.get(JOURNAL, (0, 0)) == (0, 0)
    await link.send(batch(link))
    ack = await link.expect(Ack)
    assert ack.received[JOURNAL] == (3, 0) == site.received()
    await link.aclose()


@row(15)
@pytest.mark.parametrize(
    ("who", "code"),
    [
        (identity(A, cluster_id="another"), "cluster_mismatch"),
        (identity(A, shard_count=4), "shard_count_mismatch"),
    ],
)
async def test_another_cluster_is_refused_on_both_sides(site, who, code):
    """Both the dialler and the listener learn which it is, and nothing is taken."""
    with pytest.raises(PeerRefused) as refused:
        await site.dial(who=who)
    assert refused.value.code == code
    while code not in site.codes():
        await trio.sleep(0.01)
    assert site.received() == (0, 0)


@row(15)
async def test_an_unknown_site_is_refused(site):
    """A site that the configuration does not have gets no further than its first frame."""
    stranger = SiteId(9)
    keys = KeyRing(stranger, [PairKey("k1", stranger, B, b"x" * 32)], "k1")
    with pytest.raises(PeerRefused) as refused:
        await site.dial(who=identity(stranger), keys=keys)
    assert refused.value.code == "site_unknown"


async def test_a_wrong_key_is_refused_on_both_sides(site):
    """One key id with two secrets: neither side believes the other."""
    with pytest.raises((PeerRefused, ProtocolViolation)):
        await site.dial(keys=ring(A, {**SECRETS, (A, B): b"?" * 32}))
    while "bad_proof" not in site.codes():
        await trio.sleep(0.01)


@row(15, 16)
async def test_a_site_cannot_speak_as_another(site):
    """Gamma's keys open no conduit of alpha's, and gamma's conduit carries no entry of alpha's."""
    with pytest.raises((PeerRefused, ProtocolViolation)):
        await site.dial(who=identity(A), keys=KeyRing(A, [PairKey("k1", A, B, SECRETS[C, B])], "k1"))
    link = await site.dial(who=identity(C), keys=ring(C))
    await link.expect(Welcome)
    await link.send(batch(link))
    assert await closed(link)
    assert site.received() == (0, 0)
    assert "not_its_journal" in site.codes()


@row(10, 11)
@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (lambda b: replace(b, tag=BatchTag(bytes(32))), "bad_tag"),
        (lambda b: replace(b, tag=BatchTag(bytes([b.tag.bytes[0] ^ 1]) + b.tag.bytes[1:])), "bad_tag"),
        (lambda b: replace(b, batch_seq=2), "bad_tag"),
    ],
)
async def test_a_wrong_tag_closes_the_conduit(site, forge, code):
    """A batch whose tag does not match is counted, told and not taken, although its frame is authentic."""
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(forge(batch(link)))
    assert await closed(link)
    assert code in site.codes()
    assert site.received() == (0, 0)


async def test_a_connection_that_ends_inside_a_batch_is_nobodys_fault(site):
    """A peer that is killed while it sends has broken no rule: nothing is taken, and it is not counted against it."""
    link = await site.dial()
    await link.expect(Welcome)
    sealed = b"".join(link.session.sealer.seal(encode_message(batch(link))))
    await link._stream.send_all(sealed[:-5])
    await link.aclose()
    while "conduit_closed" not in site.events():
        await trio.sleep(0.005)
    assert "batch_rejected" not in site.events()
    assert site.received() == (0, 0)


@row(12)
async def test_a_replayed_batch_closes_the_conduit(site):
    """A batch that comes again under its old number is not the next one."""
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(batch(link))
    await link.expect(Ack)
    await link.send(batch(link))
    assert await closed(link)
    assert site.received() == (3, 0)


@row(18)
async def test_a_redelivered_block_is_acknowledged_and_not_taken_twice(site):
    """After a lost ack the same entries come in a new batch: they are a duplicate, no gap and no error."""
    link = await site.dial()
    await link.expect(Welcome)
    for batch_seq in (1, 2):
        await link.send(batch(link, batch_seq))
        assert (await link.expect(Ack)).received[JOURNAL] == (3, 0)
    await link.send(batch(link, 3, block(first=2, count=4)))
    assert (await link.expect(Ack)).received[JOURNAL] == (5, 0)
    await link.aclose()


@row(17)
async def test_a_gap_is_refused_with_the_wanted_seq(site):
    """What does not follow is not taken; the sender learns what is wanted."""
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(batch(link, 1, block(first=3)))
    assert JOURNAL not in (await link.expect(Ack)).received
    nack = await link.expect(Nack)
    assert (nack.code, nack.wanted_seq) == ("gap", 1)
    assert site.received() == (0, 0)


async def test_a_stamp_beyond_the_drift_is_refused(site):
    """Entries from the future wait until the clocks agree."""
    future = 1 << 51
    payload = b"\x93\x01\x00\xc4\x01x"
    row = NewRow(future, Op.WRITE, 5, payload, entry_crc32(1, 0, A, future, 5, Op.WRITE, payload))
    what = Block.build(shard=0, first_seq=1, rows=[row], seen=encode_cursors({}, SHARDS))
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(batch(link, 1, what))
    await link.expect(Ack)
    assert (await link.expect(Nack)).code == "clock_drift"
    assert site.received() == (0, 0)
    assert site.record.stamps_beyond_us > 0


async def test_a_former_journal_is_taken_from_any_peer(site):
    """What a site wrote before it began another journal comes from whoever holds it, beside that one's own entries."""
    site.incarnations.learn(C, Incarnation(0xC2))
    link = await site.dial()
    current = (await link.expect(Welcome)).current
    assert [current[site] for site in (A, B, C)] == [JOURNAL.incarnation, 0xB0 + B, 0xC2]
    await link.send(former_batch(link))
    ack = await link.expect(Ack)
    assert ack.received[OTHERS] == (3, 0) == site.journals.replicas[OTHERS].tails
    await link.send(batch(link, 2))
    assert (await link.expect(Ack)).received[JOURNAL] == (3, 0)
    await link.send(former_batch(link, 3))
    assert (await link.expect(Ack)).received == {OTHERS: (3, 0), JOURNAL: (3, 0)}
    assert "duplicate_dropped" in site.events()
    await link.aclose()


@row(16)
@pytest.mark.parametrize("known", [None, 0xC1])
async def test_a_current_journal_is_taken_from_its_own_site_alone(site, known):
    """Another's journal is refused while it is, for all that this site knows, the one that the other writes now."""
    if known is not None:
        site.incarnations.learn(C, Incarnation(known))
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(former_batch(link))
    assert await closed(link)
    assert "not_its_journal" in site.codes()
    assert OTHERS not in site.journals.replicas


async def test_this_sites_own_journal_is_taken_from_nobody(site):
    """Only a former journal of its own does a site get back; what it writes now nobody adds to."""
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(former_batch(link, journal=site.journals.own.journal))
    assert await closed(link)
    assert "not_its_journal" in site.codes()
    assert site.journals.own.tails == (0, 0)


async def test_several_peers_may_pass_on_the_same_former_journal(site):
    """Each is acknowledged; of every entry one copy is kept."""
    former = JournalId(B, Incarnation(1))
    links = [await site.dial(), await site.dial(who=identity(C), keys=ring(C))]
    for link in links:
        await link.expect(Welcome)
    for link, first, count in [(links[0], 1, 3), (links[1], 1, 5), (links[0], 4, 4)]:
        number = 2 if first > 1 else 1
        await link.send(former_batch(link, number, block(first, count, origin=B), former))
        while (await link.expect(Ack)).received.get(former, (0, 0))[0] < first + count - 1:
            pass
    log = site.journals.replicas[former]
    reader = log.reader((0, 0))
    blocks = await reader.read(bytes_max=1 << 20)
    await reader.close()
    assert [seq for one in blocks for seq in range(one.first_seq, one.last_seq + 1)] == [1, 2, 3, 4, 5, 6, 7]


async def test_a_peer_learns_on_a_conduit_that_is_up_which_journals_have_become_former(site):
    """When another site comes back with a new journal, the welcome comes again before the next ack."""
    link = await site.dial()
    await link.expect(Welcome)
    site.incarnations.learn(C, Incarnation(0xC2))
    await link.send(Tails({JOURNAL: (0, 0)}, 0))
    assert (await link.expect(Welcome)).current[C] == 0xC2
    await link.expect(Ack)


async def test_stamps_of_a_former_journal_that_are_too_far_ahead_are_not_held_against_the_peer(site):
    """The refusal names the journal, and nothing is said of the clock of the one who passed it on."""
    site.incarnations.learn(C, Incarnation(0xC2))
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(former_batch(link, 1, block(origin=C, at_us=1 << 51)))
    await link.expect(Ack)
    nack = await link.expect(Nack)
    assert (nack.code, nack.origin, nack.incarnation, nack.wanted_seq) == ("clock_drift", C, 0xC1, 1)
    assert site.record.stamps_beyond_us is None
    assert list(site.record.former_offered_s) == [JournalId(C, Incarnation(0xC1))]
    assert site.record.former_beyond == {JournalId(C, Incarnation(0xC1))}


async def test_a_refusal_for_the_drift_is_over_when_entries_of_the_peer_are_taken(site):
    """What the status tells of a peer's stamps is about now."""
    site.record.stamps_beyond_us = 5
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(batch(link, 1, block()))
    await link.expect(Ack)
    assert site.record.stamps_beyond_us is None
    assert "clock_drift_over" in site.events()


@row(16)
async def test_another_sites_tails_are_refused(site):
    """A site tells only where its own journals end."""
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(Tails({JournalId(C, Incarnation(1)): (5, 5)}, 0))
    assert await closed(link)
    assert "not_its_journal" in site.codes()


async def test_a_peer_says_that_its_journal_has_diverged_until_it_has_another(site):
    """Whoever catches up does not wait for what such a peer has told; with a journal that goes on it counts again."""
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(Goodbye("journal_diverged", "another entry at seq 5"))
    assert await closed(link)
    assert site.record.has_diverged
    again = await site.dial()
    await again.expect(Welcome)
    await again.send(Tails({JOURNAL: (0, 0)}, 0))
    await again.expect(Ack)
    assert not site.record.has_diverged


async def test_a_peer_whose_log_was_trimmed_too_far_closes_this_sites_gate_until_it_can_send(site):
    """Its clients learn which peer it is, and the command that helps."""
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(Goodbye("needs_bootstrap", "the log begins at 9"))
    assert await closed(link)
    with pytest.raises(
        NotWritable, match=r"site alpha no longer holds.*begins at 9.*claudefs-repl bootstrap beta --from alpha"
    ):
        site.gate.check_write()
    again = await site.dial()
    await again.expect(Welcome)
    await again.send(Tails({JOURNAL: (0, 0)}, 0))
    await again.expect(Ack)
    site.gate.check_write()


async def test_a_welcome_tells_which_entries_of_the_dialler_are_the_last_here(site):
    """The dialler finds out by them whether its journal is still the one that this site has a part of."""
    link = await site.dial()
    assert (await link.expect(Welcome)).last_crcs == ()
    what = block()
    await link.send(batch(link, 1, what))
    await link.expect(Ack)
    await link.aclose()
    again = await site.dial()
    assert (await again.expect(Welcome)).last_crcs == (what.crcs[-1], 0)


@row(31)
async def test_the_newest_session_of_a_site_wins(site):
    """A second conduit ends the first; nothing is taken twice."""
    first = await site.dial()
    await first.expect(Welcome)
    second = await site.dial()
    await second.expect(Welcome)
    assert await closed(first)
    await second.send(batch(second))
    assert (await second.expect(Ack)).received[JOURNAL] == (3, 0)
    await second.aclose()


async def test_a_link_whose_key_is_retired_ends_under_its_user(site):
    """Whoever is in the middle of a batch meets a closed connection, and nothing else."""
    link = await site.dial()
    await link.expect(Welcome)
    live = LiveLinks()
    live.add(link)
    assert await live.close_retired(ring(A)) == 0
    assert await live.close_retired(KeyRing(A, [PairKey("k2", A, B, b"2" * 32)], "k2")) == 1
    with pytest.raises(LINK_ERRORS):
        await link.send(batch(link))


async def test_a_new_peer_of_a_full_site_is_told_so_and_served_when_there_is_room(site, monkeypatch):
    """No room for a peer's first segment refuses that peer, in words, and ends nothing else."""
    create = DiskStorage.create

    async def full(self, path, size):
        await trio.lowlevel.checkpoint()
        raise DiskFull(path)

    monkeypatch.setattr(DiskStorage, "create", full)
    link = await site.dial()
    with pytest.raises(PeerRefused) as refused:
        await link.expect(Welcome)
    assert refused.value.code == "disk_full"
    assert refused.value.wait_ms > 0
    monkeypatch.setattr(DiskStorage, "create", create)
    link = await site.dial()
    with pytest.raises(PeerRefused):
        await link.expect(Welcome)
    site.gate.open(DISK_FULL)
    link = await site.dial()
    await link.expect(Welcome)


async def test_a_peer_that_begins_journal_after_journal_is_refused(site, monkeypatch):
    """Each journal costs a segment: beyond a number of them the peer is refused, and its earlier ones are served."""
    monkeypatch.setattr("nodes.journals.JOURNALS_OF_ORIGIN_MAX", 2)
    for incarnation in (1, 2):
        link = await site.dial(who=identity(A, incarnation=Incarnation(incarnation)))
        await link.expect(Welcome)
    link = await site.dial(who=identity(A, incarnation=Incarnation(3)))
    with pytest.raises(PeerRefused) as refused:
        await link.expect(Welcome)
    assert refused.value.code == "too_many_journals"
    link = await site.dial(who=identity(A, incarnation=Incarnation(2)))
    await link.expect(Welcome)


async def test_a_peer_has_few_links_of_a_role(site):
    """A peer that dials on and on holds no more than a few links: the oldest ends for the newest."""
    links = [await site.dial(role=Role.QUERY) for _ in range(LINKS_MAX + 2)]
    assert await closed(links[0])
    assert await closed(links[1])
    for link in links[2:]:
        with trio.move_on_after(0.05) as patience:
            await link.receive()
        assert patience.cancelled_caught


async def test_a_dialler_that_makes_up_reasons_fills_no_table(site):
    """Whoever refuses this site with a new word each time is told in a bounded number of lines."""
    for number in range(KINDS_MAX + 20):
        stream = await site.raw()
        hello = DialerHandshake(identity(A), peer=B, role=Role.PROBE, keys=ring(A), nonce=os.urandom(32)).hello()
        await stream.send_all(hello)
        assert await stream.receive_some(65536)
        await stream.send_all(refusal_frame(PeerRefused(f"word_{number}", "made up")))
        assert await ended(stream)
    assert len(set(site.codes()) - {None}) <= KINDS_MAX + 1
    assert "other" in site.codes()


async def test_a_conduit_that_waits_for_its_turn_is_kept_alive(tmp_path, nursery):
    """A batch that is throttled for longer than a conduit may be silent is acknowledged in the end, on the same conduit."""
    async with aclosing(serve(tmp_path, nursery, GENEROUS, honest=False)) as sites:
        site = await anext(sites)
        site.limiter.reconfigure(RateLimitConfig(max_global_bytes_per_second=len(block().body) // 3))
        link = await site.dial()
        await link.expect(Welcome)
        for batch_seq in (1, 2):
            await link.send(batch(link, batch_seq, block(first=3 * batch_seq - 2)))
        seqs = []
        while not seqs or seqs[-1] < 6:
            with trio.fail_after(QUICK.idle_timeout_s):
                seqs.append((await link.expect(Ack)).received.get(JOURNAL, (0, 0))[0])
        assert len(seqs) > 2


async def converse(site, port):
    """A whole conversation up to the first ack."""
    link = await site.dial(port=port)
    try:
        await link.expect(Welcome)
        await link.send(batch(link))
        return (await link.expect(Ack)).received[JOURNAL]
    finally:
        await link.aclose()


@row(10, 35)
async def test_a_flipped_bit_at_any_byte_of_a_conversation_changes_nothing(site, nursery):
    """Whatever byte of hello, proof or batch is altered on the way, the connection ends and nothing is taken."""
    tamperer = Tamperer(("127.0.0.2", site.config.port), None)
    listeners = await nursery.start(partial(trio.serve_tcp, tamperer.handle, 0, host="127.0.0.2"))
    port = listeners[0].socket.getsockname()[1]
    for at in itertools.count():
        tamperer.at, tamperer.sent = at, bytearray()
        try:
            with trio.fail_after(30):
                received = await converse(site, port)
        except (PeerRefused, *LINK_ERRORS):
            assert site.received() == (0, 0), at
            continue
        # Nothing fails once the byte to alter lies beyond the conversation.
        assert at == len(tamperer.sent) > 300
        assert received == (3, 0)
        return


@row(13)
async def test_a_replayed_connection_changes_nothing(site, nursery):
    """A recorded conversation sent again fails at the proof: both sides' nonces are in it."""
    tamperer = Tamperer(("127.0.0.2", site.config.port), None)
    listeners = await nursery.start(partial(trio.serve_tcp, tamperer.handle, 0, host="127.0.0.2"))
    await converse(site, listeners[0].socket.getsockname()[1])
    entries = site.received()
    stream = await site.raw()
    await stream.send_all(bytes(tamperer.sent))
    assert await ended(stream)
    assert "bad_proof" in site.codes()
    assert site.received() == entries


@row(4, 5, 34)
@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        struct.pack(">I", 0xFFFF_FFFF) + b"x" * 64,
        struct.pack(">I", 0) + b"x" * 64,
        struct.pack(">I", 4097) + b"x" * 64,
        struct.pack(">I", 16) + b"CFSRxxxxxxxxxxxx",
        random.Random(7).randbytes(64),
    ],
)
async def test_what_is_not_the_protocol_is_closed(site, opening):
    """Other protocols, impossible lengths and noise end the connection at once."""
    stream = await site.raw()
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(opening)
    assert await ended(stream)
    assert site.admission.half_open == 0


@row(1, 6)
@pytest.mark.parametrize(
    "opening", [b"", struct.pack(">I", 300) + b"CFSR", struct.pack(">I", HANDSHAKE_BYTES_MAX) + b"CFSR"]
)
async def test_a_handshake_that_does_not_go_on_ends_at_its_deadline(site, opening):
    """Silence, and a header without its body, are closed when the time for the whole handshake is over."""
    stream = await site.raw()
    await stream.send_all(opening) if opening else None
    assert await ended(stream)
    assert "no_handshake" in site.codes()


@row(2)
async def test_one_byte_at_a_time_does_not_stretch_the_handshake(site):
    """The deadline is for the whole handshake, not for each read."""
    stream = await site.raw()
    began_s = trio.current_time()

    async def drip():
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for byte in struct.pack(">I", 4000) + b"CFSR" + bytes(3000):
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        assert await ended(stream)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began_s < 10 * QUICK.handshake_timeout_s


@row(14)
async def test_a_frame_that_is_sent_back_to_its_sender_is_refused(site):
    """Direction is in the key: what the site has sealed itself opens nothing."""
    link = await site.dial()
    own_words = await link._stream.receive_some(65536)
    await link._stream.send_all(own_words)
    assert await closed(link)
    assert "bad_mac" in site.codes()
    assert site.received() == (0, 0)


@row(7)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
async def test_a_stream_that_ends_inside_a_batch_leaves_nothing(site, share):
    """What came of a frame before its end is dropped with the connection, and the next one begins anew."""
    link = await site.dial()
    await link.expect(Welcome)
    frame = b"".join(link.session.sealer.seal(encode_message(batch(link))))
    await link._stream.send_all(frame[: int(len(frame) * share)])
    await link.aclose()
    again = await site.dial()
    assert JOURNAL not in (await again.expect(Welcome)).received
    await again.send(batch(again))
    assert (await again.expect(Ack)).received[JOURNAL] == (3, 0)
    await again.aclose()


async def test_silence_on_a_conduit_ends_it(site):
    """A conduit on which nothing comes is closed after the idle time."""
    link = await site.dial()
    await link.expect(Welcome)
    assert await closed(link)


async def test_open_handshakes_of_a_peers_address_are_few_and_come_free_again(site):
    """Beyond the quota a connection is refused before a byte is read; when the others end, it is served."""
    held = [await site.raw() for _ in range(PEER_HALF_OPEN_MAX)]
    while site.admission.half_open < PEER_HALF_OPEN_MAX:
        await trio.sleep(0.005)
    with pytest.raises(PeerRefused) as refused:
        await site.dial()
    assert refused.value.code == "half_open"
    for stream in held:
        await stream.aclose()
    while site.admission.half_open:
        await trio.sleep(0.005)
    link = await site.dial()
    await link.expect(Welcome)
    await link.aclose()


@row(28)
async def test_ten_thousand_connections_from_one_address_leave_an_honest_conduit_alone(tmp_path, nursery):
    """A flood is refused at the gate, told in a handful of lines, and batches go on being acknowledged meanwhile."""
    flooded = 0

    async def flood(site, count):
        nonlocal flooded
        for _ in range(count):
            with contextlib.suppress(OSError, trio.BrokenResourceError):
                stream = await site.raw("127.0.0.66")
                await trio.aclose_forcefully(stream)
            flooded += 1

    async with aclosing(serve(tmp_path, nursery, RateLimitConfig())) as sites:
        site = await anext(sites)
        link = await site.dial()
        await link.expect(Welcome)
        async with trio.open_nursery() as flooding:
            for _ in range(20):
                flooding.start_soon(flood, site, 500)
            seq = 1
            while flooded < 10_000:
                await link.send(batch(link, seq, block(first=seq, count=1)))
                with trio.fail_after(60):
                    assert (await link.expect(Ack)).received[JOURNAL] == (seq, 0)
                seq += 1
        assert seq > 20
        assert sum(site.admission.refused.values()) > 1_000
        assert len(site.codes()) < 40
        await link.aclose()
