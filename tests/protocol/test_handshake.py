"""The handshake: who agrees, who is refused with which word, and what no attacker between the two can do."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.batch_auth import BatchAuthenticator
from claudefs_repl.error import PeerError, PeerRefused, ProtocolViolation
from claudefs_repl.journal import Incarnation, SiteId
from protocol.frames import HANDSHAKE_BYTES_MAX, plain_frame
from protocol.handshake import (
    PROTOCOL_VERSIONS,
    TRANSITIONS,
    WAIT_MS_MAX,
    DialerHandshake,
    Event,
    ListenerHandshake,
    LocalIdentity,
    Role,
    State,
    refusal_frame,
)
from protocol.keys import KeyRing, PairKey, derive

A, B, C = SiteId(1), SiteId(2), SiteId(3)
ALPHA = LocalIdentity("cluster", 4, A, Incarnation(0xA1))
BETA = LocalIdentity("cluster", 4, B, Incarnation(0xB2))
KEY_AB = PairKey("k1", A, B, b"\x11" * 32)
KEY_BA = PairKey("k1", B, A, b"\x22" * 32)
KEY_CB = PairKey("k1", C, B, b"\x33" * 32)
ALPHA_KEYS = KeyRing(A, [KEY_AB, KEY_BA], "k1")
BETA_KEYS = KeyRing(B, [KEY_AB, KEY_BA, KEY_CB], "k1")


def make_dialer(identity=ALPHA, **changes):
    fields = {"peer": B, "role": Role.CONDUIT, "keys": ALPHA_KEYS, "nonce": b"\xaa" * 32} | changes
    return DialerHandshake(identity, **fields)


def make_listener(identity=BETA, **changes):
    fields = {"keys": BETA_KEYS, "known": {A, B, C}, "nonce": b"\xbb" * 32} | changes
    return ListenerHandshake(identity, **fields)


def body(frame):
    (length,) = struct.unpack_from(">I", frame)
    assert length == len(frame) - 4 <= HANDSHAKE_BYTES_MAX
    return frame[4:]


def shake(dialer, listener):
    answer = listener.receive_hello(body(dialer.hello()))
    proof, at_dialer = dialer.receive(body(answer))
    return at_dialer, listener.receive_proof(body(proof))


@pytest.fixture
def recorded():
    """The three frames of an honest handshake."""
    dialer, listener = make_dialer(), make_listener()
    hello = body(dialer.hello())
    answer = body(listener.receive_hello(hello))
    proof, _ = dialer.receive(answer)
    return hello, answer, body(proof)


@pytest.mark.parametrize("role", Role)
def test_honest_sides_agree(role):
    """Both sides end with the same view of who is there, what for, and which keys serve which direction."""
    dialer, listener = make_dialer(role=role), make_listener()
    at_dialer, at_listener = shake(dialer, listener)
    assert (at_dialer.peer, at_dialer.peer_incarnation) == (B, 0xB2)
    assert (at_listener.peer, at_listener.peer_incarnation) == (A, 0xA1)
    for session in (at_dialer, at_listener):
        assert (session.role, session.key_id, session.version) == (role, "k1", 1)
    for sender, receiver in ((at_dialer, at_listener), (at_listener, at_dialer)):
        for text in (b"one", b"two"):
            assert receiver.opener.open(b"".join(sender.sealer.seal([text]))[4:]) == text
    tag = BatchAuthenticator(at_dialer.batch_key, A).sign_body(A, 1, b"body")
    assert BatchAuthenticator(at_listener.batch_key, B).verify_body(tag, A, 1, b"body").valid
    assert (dialer.state, listener.state) == (State.DONE, State.DONE)


def test_directions_have_keys_of_their_own():
    """A frame that is sent back to its sender is refused: each direction has its own key."""
    at_dialer, at_listener = shake(make_dialer(), make_listener())
    for session in (at_dialer, at_listener):
        with pytest.raises(ProtocolViolation):
            session.opener.open(b"".join(session.sealer.seal([b"mine"]))[4:])


@pytest.mark.parametrize("changes", [{"nonce": b"\xac" * 32}, {"role": Role.PROBE}])
def test_connections_have_keys_of_their_own(changes):
    """A frame of one connection is refused on every other, be it of the same two sites."""
    one, _ = shake(make_dialer(), make_listener())
    _, other = shake(make_dialer(**changes), make_listener())
    with pytest.raises(ProtocolViolation):
        other.opener.open(b"".join(one.sealer.seal([b"mine"]))[4:])
    assert one.batch_key.as_bytes() != other.batch_key.as_bytes()


def test_golden_vectors(recorded):
    """The bytes of a handshake with known keys and nonces never change within a version."""
    hello, answer, proof = recorded
    fixed = struct.pack(">BQQQI", 0, 1, 0xA1, 2, 4)
    assert hello == b"CFSR\x01" + b"\x01\x01" + fixed + b"\xaa" * 32 + b"\x07cluster" + b"\x02k1"
    assert answer[:-32] == b"CFSR\x02" + struct.pack(">BQQ", 1, 2, 0xB2) + b"\xbb" * 32
    assert proof[:5] == b"CFSR\x03"
    said = b"".join(struct.pack(">I", len(part)) + part for part in (hello, answer[:-32]))
    extracted = hmac.digest(hashlib.sha256(said).digest(), KEY_AB.secret, "sha256")
    assert answer[-32:] == hmac.digest(extracted, b"claudefs-repl listener proof\1", "sha256")
    assert proof[5:] == hmac.digest(extracted, b"claudefs-repl dialer proof\1", "sha256")
    assert proof[5:].hex() == "ba52a91a789095878896f3268ecd4ffbe25cc29870e7919e0fdf56b37e8dc810"


def test_refusal_golden_vector():
    """The layout of a refusal is the same in every version: who speaks only another must understand it."""
    frame = refusal_frame(PeerRefused("key_unknown", "no é", wait_ms=1500))
    assert body(frame) == b"CFSR\x04" + struct.pack(">I", 1500) + b"\x0bkey_unknown" + b"\x00\x05no \xc3\xa9"


REFUSALS = [
    pytest.param("version_unsupported", {"versions": (2, 7)}, {}, id="version"),
    pytest.param("cluster_mismatch", {"identity": replace(ALPHA, cluster_id="other")}, {}, id="cluster"),
    pytest.param("shard_count_mismatch", {"identity": replace(ALPHA, shard_count=8)}, {}, id="shards"),
    pytest.param("site_unknown", {}, {"known": {B, C}}, id="unknown site"),
    pytest.param(
        "wrong_site", {}, {"identity": replace(BETA, site_id=C), "keys": KeyRing(C, [KEY_CB], "k1")}, id="wrong site"
    ),
    pytest.param("self_connection", {}, {"identity": ALPHA, "keys": ALPHA_KEYS}, id="self"),
    pytest.param("key_unknown", {}, {"keys": KeyRing(B, [KEY_CB, KEY_BA], "k1")}, id="key"),
]


@pytest.mark.parametrize(("code", "dialer_changes", "listener_changes"), REFUSALS)
def test_mismatch_is_refused_on_both_sides(code, dialer_changes, listener_changes):
    """Both sides learn by one and the same word why they do not speak, and the listener who claimed to be there."""
    dialer, listener = make_dialer(**dialer_changes), make_listener(**listener_changes)
    with pytest.raises(PeerRefused) as at_listener:
        listener.receive_hello(body(dialer.hello()))
    with pytest.raises(PeerRefused) as at_dialer:
        dialer.receive(body(refusal_frame(at_listener.value)))
    assert at_listener.value.code == at_dialer.value.code == code
    assert at_listener.value.detail == at_dialer.value.detail
    assert (dialer.state, listener.state) == (State.FAILED, State.FAILED)
    assert listener.peer == (None if code == "version_unsupported" else A)


def test_version_is_the_highest_common():
    """Of the versions that both speak the highest is chosen."""
    at_dialer, at_listener = shake(make_dialer(versions=(1, 2, 3, 9)), make_listener(versions=(3, 1, 2, 4)))
    assert at_dialer.version == at_listener.version == 3
    assert PROTOCOL_VERSIONS == (1,)


def test_without_a_key_there_is_no_dialling():
    """A site that has no key for a peer does not even connect."""
    with pytest.raises(PeerRefused) as refused:
        make_dialer(peer=C)
    assert refused.value.code == "key_missing"


def other_secret(key):
    return replace(key, secret=b"\x99" * 32)


def test_other_secret_under_the_same_id_is_found_by_both():
    """Sites whose keys differ under one id do not agree; the dialler sees it first and can tell the listener."""
    dialer = make_dialer()
    listener = make_listener(keys=KeyRing(B, [other_secret(KEY_AB)], "k1"))
    answer = listener.receive_hello(body(dialer.hello()))
    with pytest.raises(ProtocolViolation) as at_dialer:
        dialer.receive(body(answer))
    assert at_dialer.value.code == "bad_proof"
    with pytest.raises(PeerRefused) as at_listener:
        listener.receive_proof(body(refusal_frame(at_dialer.value)))
    assert at_listener.value.code == "bad_proof"


def test_listener_without_the_key_is_not_believed(recorded):
    """Whoever answers without the key, with whatever proof, gets no session and no proof of the dialler's."""
    _, answer, _ = recorded
    for forged in (bytes(32), b"\xff" * 32, hmac.digest(b"\x99" * 32, answer[:-32], "sha256")):
        dialer = make_dialer()
        dialer.hello()
        with pytest.raises(ProtocolViolation) as refused:
            dialer.receive(answer[:-32] + forged)
        assert refused.value.code == "bad_proof"


def test_every_changed_byte_of_the_hello_fails(recorded):
    """A hello that was altered on the way, at any byte, ends without a session on either side."""
    hello, _, _ = recorded
    for at in range(len(hello)):
        for flip in (0x01, 0x80, 0xFF):
            altered = bytearray(hello)
            altered[at] ^= flip
            dialer, listener = make_dialer(), make_listener(versions=range(256))
            dialer.hello()
            answer = None
            with contextlib.suppress(PeerError):
                answer = listener.receive_hello(bytes(altered))
            if answer is not None:
                with pytest.raises(PeerError):
                    dialer.receive(body(answer))
            assert dialer.state is not State.DONE
            assert listener.state is not State.DONE


def test_every_changed_byte_of_the_answer_fails(recorded):
    """An answer that was altered on the way, at any byte, is refused by the dialler, which then proves nothing."""
    _, answer, _ = recorded
    for at in range(len(answer)):
        for flip in (0x01, 0x80, 0xFF):
            altered = bytearray(answer)
            altered[at] ^= flip
            dialer = make_dialer(versions=range(1, 17))
            dialer.hello()
            with pytest.raises(PeerError):
                dialer.receive(bytes(altered))
            assert dialer.state is State.FAILED


def test_every_changed_byte_of_the_proof_fails(recorded):
    """A proof that was altered on the way, at any byte, gives no session."""
    hello, _, proof = recorded
    for at in range(len(proof)):
        for flip in (0x01, 0x80, 0xFF):
            altered = bytearray(proof)
            altered[at] ^= flip
            listener = make_listener()
            listener.receive_hello(hello)
            with pytest.raises(PeerError):
                listener.receive_proof(bytes(altered))
            assert listener.state is State.FAILED


def test_every_truncation_and_trailing_byte_fails(recorded):
    """A frame of the handshake that is cut off anywhere, or has a byte too many, is a protocol violation."""
    hello, answer, proof = recorded
    for length in [*range(len(hello)), None]:
        with pytest.raises(ProtocolViolation):
            make_listener().receive_hello(hello[:length] if length is not None else hello + b"\0")
    for length in [*range(len(answer)), None]:
        dialer = make_dialer()
        dialer.hello()
        with pytest.raises(ProtocolViolation):
            dialer.receive(answer[:length] if length is not None else answer + b"\0")
    for length in [*range(len(proof)), None]:
        listener = make_listener()
        listener.receive_hello(hello)
        with pytest.raises(ProtocolViolation):
            listener.receive_proof(proof[:length] if length is not None else proof + b"\0")


def test_replayed_handshake_fails(recorded):
    """A recorded hello and proof give no session against a fresh nonce of the listener."""
    hello, _, proof = recorded
    listener = make_listener(nonce=b"\xbc" * 32)
    listener.receive_hello(hello)
    with pytest.raises(ProtocolViolation) as refused:
        listener.receive_proof(proof)
    assert refused.value.code == "bad_proof"


def test_replayed_answer_fails(recorded):
    """A recorded answer does not convince a dialler with a fresh nonce."""
    _, answer, _ = recorded
    dialer = make_dialer(nonce=b"\xab" * 32)
    dialer.hello()
    with pytest.raises(ProtocolViolation) as refused:
        dialer.receive(answer)
    assert refused.value.code == "bad_proof"


def test_reflected_hello_and_proofs_fail(recorded):
    """Nothing that a side sent convinces that side: not its hello, not its proof, not the other's proof as its own."""
    hello, answer, proof = recorded
    with pytest.raises(PeerRefused) as refused:
        make_listener(ALPHA, keys=ALPHA_KEYS).receive_hello(hello)
    assert refused.value.code == "self_connection"
    for reflected in (hello, proof):
        dialer = make_dialer()
        dialer.hello()
        with pytest.raises(ProtocolViolation):
            dialer.receive(reflected)
    listener = make_listener()
    listener.receive_hello(hello)
    with pytest.raises(ProtocolViolation) as violation:
        listener.receive_proof(b"CFSR\x03" + answer[-32:])
    assert violation.value.code == "bad_proof"


def test_parallel_connections_do_not_lend_proofs():
    """An attacker who dials back as B while A dials it gets nothing from A that serves as B's answer."""
    dialer = make_dialer()
    hello = body(dialer.hello())
    # A's own listener answers hellos of B, but with the key of the other direction and a transcript of its own
    forged_hello = bytearray(hello)
    offset = len(b"CFSR\x01\x01\x01\x00")
    forged_hello[offset : offset + 8], forged_hello[offset + 16 : offset + 24] = (
        struct.pack(">Q", B),
        struct.pack(">Q", A),
    )
    listener = make_listener(ALPHA, keys=ALPHA_KEYS)
    answer = bytearray(body(listener.receive_hello(bytes(forged_hello))))
    answer[6:14] = struct.pack(">Q", B)
    with pytest.raises(ProtocolViolation) as refused:
        dialer.receive(bytes(answer))
    assert refused.value.code == "bad_proof"


def test_downgrade_fails():
    """Versions cannot be struck from the offer on the way: the proof covers the offer."""
    dialer, listener = make_dialer(versions=(1, 2)), make_listener(versions=(1, 2))
    hello = body(dialer.hello())
    struck = hello.replace(b"\x02\x01\x02", b"\x01\x01", 1)
    assert len(struck) == len(hello) - 1
    answer = body(listener.receive_hello(struck))
    assert answer[5] == 1
    with pytest.raises(ProtocolViolation) as refused:
        dialer.receive(answer)
    assert refused.value.code == "bad_proof"


def test_chosen_version_must_have_been_offered(recorded):
    """A listener that chooses what was not offered breaks the protocol."""
    _, answer, _ = recorded
    dialer = make_dialer()
    dialer.hello()
    with pytest.raises(ProtocolViolation, match="not offered"):
        dialer.receive(answer[:5] + b"\x02" + answer[6:])


def test_answer_of_another_site_is_refused(recorded):
    """Who has the key but says it is another site than the one dialled breaks the protocol."""
    hello, answer, _ = recorded
    unproven = answer[:6] + struct.pack(">Q", C) + answer[14:-32]
    said = b"".join(struct.pack(">I", len(part)) + part for part in (hello, unproven))
    proof = derive(KEY_AB.secret, hashlib.sha256(said).digest(), b"claudefs-repl listener proof")
    dialer = make_dialer()
    dialer.hello()
    with pytest.raises(ProtocolViolation, match="site 3 answered"):
        dialer.receive(unproven + proof)


def test_site_cannot_speak_as_another():
    """C, with its own keys, is not taken for A, whatever it says of itself."""
    cs_guess = KeyRing(A, [replace(KEY_CB, dialer=A)], "k1")
    dialer, listener = make_dialer(keys=cs_guess), make_listener()
    answer = listener.receive_hello(body(dialer.hello()))
    with pytest.raises(ProtocolViolation):
        dialer.receive(body(answer))
    # it may ignore the answer's proof and make up its own
    with pytest.raises(ProtocolViolation) as refused:
        listener.receive_proof(b"CFSR\x03" + answer[-32:])
    assert refused.value.code == "bad_proof"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "bad_magic"),
        (b"\x16\x03\x01\x02", "bad_magic"),
        (b"", "bad_magic"),
        (b"CFS", "bad_magic"),
        (b"CFSR", "bad_handshake"),
        (b"CFSR\x00", "bad_handshake"),
        (b"CFSR\x02" + bytes(100), "bad_handshake"),
        (b"CFSR\x04" + bytes(100), "bad_handshake"),
        (b"CFSR\x09" + bytes(100), "bad_handshake"),
        (b"CFSR\x01\x00" + bytes(100), "bad_handshake"),
        (b"CFSR\x01\x11" + b"\x01" * 100, "bad_handshake"),
    ],
)
def test_what_is_no_hello_is_refused(frame, code):
    """Another protocol, or another frame than the one that is due, is refused and not answered."""
    with pytest.raises(ProtocolViolation) as refused:
        make_listener().receive_hello(frame)
    assert refused.value.code == code


def hello_with(*, role=0, dialer=1, listener=2, cluster=b"cluster", key_id=b"k1"):
    fixed = struct.pack(">BQQQI", role, dialer, 0xA1, listener, 4) + bytes(32)
    return b"CFSR\x01\x01\x01" + fixed + bytes([len(cluster)]) + cluster + bytes([len(key_id)]) + key_id


@pytest.mark.parametrize(
    "fields",
    [
        {"role": 3},
        {"role": 255},
        {"dialer": 0},
        {"dialer": 2048},
        {"listener": 0},
        {"listener": (1 << 64) - 1},
        {"cluster": b"\xff\xfe"},
        {"key_id": b""},
        {"key_id": b"\xff"},
        {"key_id": b"a\x1b[2J"},
        {"key_id": b"k" * 65},
    ],
)
def test_hello_out_of_range_is_refused(fields):
    """Every field of a hello has its range."""
    assert make_listener().receive_hello(hello_with())
    with pytest.raises(ProtocolViolation) as refused:
        make_listener().receive_hello(hello_with(**fields))
    assert refused.value.code == "bad_handshake"


@given(st.binary(max_size=200))
def test_random_frames_are_refused(noise):
    """No bytes make either side do anything but refuse."""
    for frame in (noise, b"CFSR" + noise, b"CFSR\x01\x01\x01" + noise):
        with pytest.raises(PeerError):
            make_listener().receive_hello(frame)
    listener, dialer = make_listener(), make_dialer()
    listener.receive_hello(body(dialer.hello()))
    with pytest.raises(PeerError):
        listener.receive_proof(b"CFSR\x03" + noise)
    with pytest.raises(PeerError):
        dialer.receive(b"CFSR\x02" + noise)


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        bytes(3),
        struct.pack(">IB", 0, 0) + b"\0\0",
        struct.pack(">IB", 0, 33) + b"a" * 33 + b"\0\0",
        struct.pack(">IB", 0, 4) + b"A\x1b[2" + b"\0\0",
        struct.pack(">IB", 0, 1) + b"a" + b"\xff\xff",
        struct.pack(">IB", 0, 1) + b"a" + b"\x02\x01" + b"x" * 513,
        struct.pack(">IB", 0, 1) + b"a" + b"\0\1\xff",
        struct.pack(">IB", 0, 1) + b"a" + b"\0\0\0",
    ],
)
def test_refusal_of_another_form_is_a_violation(fields):
    """A refusal's code is a word, its detail a short text, and nothing follows."""
    dialer = make_dialer()
    dialer.hello()
    with pytest.raises(ProtocolViolation) as refused:
        dialer.receive(b"CFSR\x04" + fields)
    assert refused.value.code == "bad_handshake"


@given(
    detail=st.text(max_size=700),
    wait_ms=st.integers(0, (1 << 40)),
)
def test_refusal_round_trips_within_its_limits(detail, wait_ms):
    """A refusal comes over with its code; its detail is cut, cannot move a cursor, and its wait is bounded."""
    dialer = make_dialer()
    dialer.hello()
    with pytest.raises(PeerRefused) as refused:
        dialer.receive(body(refusal_frame(PeerRefused("rate_limited", detail, wait_ms=wait_ms))))
    assert refused.value.code == "rate_limited"
    assert refused.value.wait_ms == min(wait_ms, WAIT_MS_MAX)
    assert refused.value.detail.isprintable()
    assert len(refused.value.detail.encode()) <= 512
    if detail.isprintable() and len(detail.encode()) <= 512:
        assert refused.value.detail == detail


def test_injected_wait_is_bounded():
    """A refusal, which anybody on the path can make up, silences a dialler for an hour at most."""
    dialer = make_dialer()
    dialer.hello()
    with pytest.raises(PeerRefused) as refused:
        dialer.receive(b"CFSR\x04\xff\xff\xff\xff\x01a\x00\x00")
    assert refused.value.wait_ms == WAIT_MS_MAX


def test_steps_out_of_order_are_our_error():
    """A handshake is used in one order, once; anything else is a mistake of the caller's code."""
    with pytest.raises(AssertionError):
        make_dialer().receive(b"")
    with pytest.raises(AssertionError):
        make_listener().receive_proof(b"")
    dialer, listener = make_dialer(), make_listener()
    shake(dialer, listener)
    for again in (dialer.hello, lambda: dialer.receive(b""), lambda: listener.receive_hello(b"")):
        with pytest.raises(AssertionError):
            again()
    failed = make_listener()
    with pytest.raises(ProtocolViolation):
        failed.receive_hello(b"")
    with pytest.raises(AssertionError):
        failed.receive_hello(b"")


def test_ended_handshake_never_moves():
    """Nothing leads out of DONE or FAILED."""
    for state in (State.DONE, State.FAILED):
        assert not [event for event in Event if (state, event) in TRANSITIONS]


def test_longest_hello_fits():
    """The longest names still make a handshake within the limit."""
    key = PairKey("k" * 64, A, B, bytes(32))
    identity = replace(ALPHA, cluster_id="ü" * 127)
    dialer = make_dialer(identity, keys=KeyRing(A, [key], "k" * 64), versions=range(1, 17))
    listener = make_listener(replace(BETA, cluster_id="ü" * 127), keys=KeyRing(B, [key], {}))
    assert shake(dialer, listener)[1].key_id == "k" * 64


def test_plain_frame_is_length_and_body():
    """Handshake frames carry their length, big endian, and nothing else around the body."""
    assert plain_frame(b"body") == b"\0\0\0\4body"
