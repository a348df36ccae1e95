"""What comes from sockets: frames, the handshake of both sides, messages, payloads, blocks, clients' requests."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgpack

from claudefs_repl.batch_auth import BatchTag
from claudefs_repl.block import Block, NewRow, join_blocks
from claudefs_repl.checkpoint import (
    decode_cursors,
    decode_incarnations,
    encode_cursors,
    encode_incarnations,
)
from claudefs_repl.error import OperationRefused, PeerRefused, ProtocolViolation
from claudefs_repl.journal import Incarnation, Inode, JournalId, Op, Shard, SiteId, entry_crc32
from claudefs_repl.operations import (
    Create,
    Link,
    MkDir,
    RemoveXattr,
    Rename,
    Replaced,
    SetAttr,
    SetXattr,
    Symlink,
    Truncate,
    Unlink,
    Write,
)
from nodes.accounts import judge_sums
from nodes.client_ops import parse_ops
from nodes.queries import ITEMS_MAX, unpack_value
from protocol.client import (
    REQUEST_ITEMS_MAX,
    ClientFrames,
    encode_error,
    encode_request,
    encode_response,
    parse_request,
    parse_response,
)
from protocol.frames import HANDSHAKE_BYTES_MAX, FrameCutter, FrameOpener, FrameSealer
from protocol.handshake import DialerHandshake, ListenerHandshake, LocalIdentity, Role, State, refusal_frame
from protocol.keys import KeyRing, PairKey
from protocol.messages import (
    Ack,
    Batch,
    Goodbye,
    Nack,
    Ping,
    Pong,
    Query,
    Reply,
    Tails,
    Welcome,
    decode_message,
    encode_message,
)
from protocol.payload import OP_OF, PayloadInvalid, decode_payload, encode_payload
from tests.fuzz.engine import Target

A, B = SiteId(1), SiteId(2)
SHARDS = 2
JOURNAL, OTHER = JournalId(A, Incarnation(0xA1)), JournalId(B, Incarnation(0xB2))
KEYS = [PairKey("k1", A, B, b"a" * 32), PairKey("k1", B, A, b"b" * 32)]
DIALER, LISTENER = (LocalIdentity("fuzz", SHARDS, site, Incarnation(7)) for site in (A, B))
DIALER_NONCE, LISTENER_NONCE = b"d" * 32, b"l" * 32
CURSORS = {JOURNAL: (3, 0), OTHER: (5, 9)}
OPERATIONS = (
    Create(0o644, 1000, 1000, 1_700_000_000_000_000_000, Inode(1), b"name"),
    Create(0o600, 0, 0, 0, None, None),
    Unlink(Inode(1), b"name", False),
    Rename(Inode(1), b"old", Inode(9), b"new", True, (Replaced(Inode(5), False), Replaced(Inode(6), True))),
    Rename(None, None, Inode(9), b"new", False, ()),
    Write(4096, b"data" * 9),
    Truncate(77),
    SetAttr(0o755, None, 5, -1),
    Link(Inode(1), b"again"),
    Symlink(0, 0, 1, Inode(1), b"link", b"../target"),
    MkDir(0o755, 0, 0, 1, Inode(1), b"dir"),
    SetXattr(b"user.a", b"value"),
    RemoveXattr(b"user.a"),
)
HEADS = (
    *(b"\x80", b"\x8f", b"\x90", b"\x91", b"\x9f", b"\xa1", b"\xc0", b"\xc2", b"\xc3", b"\xc4", b"\xc7", b"\xd9"),
    b"\xdc\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x05",
    b"\xd6\xff\0\0\0\0",
    b"\xcb\x7f\xf8\0\0\0\0\0\0",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\0\0\0\0\0\0\0",
    b"\xa2\xed\xa0",
)
"""msgpack: containers, lengths that promise more than there is, extensions, NaN, edges of integers, no UTF-8."""


NESTED_ROOM_BYTES = 1024 * 8 + 512
"""What one item that an array announces can cost before it is there: a pointer, at each of msgpack's 1,024 levels."""


def make_block(first_seq: int = 1, count: int = 3, sizes: Sequence[int] = (5,), seen: bytes | None = None) -> Block:
    rows = []
    for seq in range(first_seq, first_seq + count):
        payload = encode_payload(Write(seq, b"x" * sizes[seq % len(sizes)]))
        crc32 = entry_crc32(seq, Shard(0), A, 1000 + seq, Inode(5), Op.WRITE, payload)
        rows.append(NewRow(1000 + seq, Op.WRITE, Inode(5), payload, crc32))
    return Block.build(shard=Shard(0), first_seq=first_seq, rows=rows, seen=seen or encode_cursors(CURSORS, SHARDS))


def blocks() -> list[Block]:
    one, two = make_block(1, 2), make_block(3, 3, (0, 9, 40), encode_cursors({}, SHARDS))
    return [one, two, join_blocks([one, two]), join_blocks([one, two]).without_payloads([0, 2])]


# --- frames -----------------------------------------------------------------------------------------------------------


def cut_frames(data: bytes) -> None:
    """However the stream is cut into pieces, the frames are the same, and no more is held than a frame and a piece."""
    if not data:
        return
    piece, stream = 1 + data[0], data[1:]
    assert _frames_of(stream, piece) == _frames_of(stream, len(stream) or 1)


def _frames_of(stream: bytes, piece: int) -> tuple[list[bytes], str]:
    cutter = FrameCutter(bytes_max=HANDSHAKE_BYTES_MAX)
    frames: list[bytes] = []
    for at in range(0, len(stream), piece):
        cutter.feed(stream[at : at + piece])
        try:
            while (frame := cutter.next_frame()) is not None:
                assert 0 < len(frame) <= HANDSHAKE_BYTES_MAX
                frames.append(frame)
        except ProtocolViolation as violation:
            try:
                cutter.next_frame()
            except ProtocolViolation:
                return frames, violation.code
            raise AssertionError("a stream that cannot be cut was cut on") from violation
        assert cutter.buffered < 4 + HANDSHAKE_BYTES_MAX
    return frames, "" if cutter.at_boundary() else "cut off"


def frame_seeds() -> list[bytes]:
    frames = [struct.pack(">I", len(body)) + body for body in (b"x", b"y" * 40, b"z" * 300)]
    return [
        b"\x00" + b"".join(frames),
        b"\x07" + b"".join(frames),
        b"\xff" + frames[0] * 300,
        b"\x10" + frames[1][:9],
        b"\x03\0\0\0\0",
        b"\xff" + struct.pack(">I", HANDSHAKE_BYTES_MAX) + bytes(HANDSHAKE_BYTES_MAX),
    ]


SEALED = [b"".join(map(bytes, sealed)) for sealed in map(FrameSealer(b"k" * 32).seal, ([b"one"], [b"two", b"2"]))]
REFLECTED = b"".join(FrameSealer(b"r" * 32).seal([b"one"]))


def open_frames(data: bytes) -> None:
    """Nothing is opened but what was sealed, in that order; after the first that is not, nothing more."""
    cutter, opener, opened = FrameCutter(bytes_max=HANDSHAKE_BYTES_MAX), FrameOpener(b"k" * 32), []
    cutter.feed(data)
    while (frame := cutter.next_frame()) is not None:
        try:
            opened.append(bytes(opener.open(frame)))
        except ProtocolViolation:
            for again in (frame, SEALED[0][4:]):
                try:
                    opener.open(again)
                except ProtocolViolation:
                    continue
                raise AssertionError("a frame was opened after one that was refused") from None
            raise
    assert opened == [b"one", b"two2"][: len(opened)]


# --- the handshake ----------------------------------------------------------------------------------------------------


def listener_side() -> ListenerHandshake:
    return ListenerHandshake(LISTENER, keys=KeyRing(B, KEYS, "k1"), known={A}, nonce=LISTENER_NONCE)


def dialer_side(role: Role = Role.CONDUIT) -> DialerHandshake:
    return DialerHandshake(DIALER, peer=B, role=role, keys=KeyRing(A, KEYS, "k1"), nonce=DIALER_NONCE)


def honest(role: Role = Role.CONDUIT) -> tuple[bytes, bytes, bytes]:
    """Hello, answer and proof of a handshake that succeeds, as frames."""
    dialer, listener = dialer_side(role), listener_side()
    hello = dialer.hello()
    answer = listener.receive_hello(hello[4:])
    return hello, answer, dialer.receive(answer[4:])[0]


HONEST = {role: honest(role) for role in Role}


def listen(data: bytes) -> None:
    """Only the dialler's own frames, unchanged, end in a session."""
    cutter, listener = FrameCutter(bytes_max=HANDSHAKE_BYTES_MAX), listener_side()
    cutter.feed(data)
    if (hello := cutter.next_frame()) is None:
        return
    listener.receive_hello(hello)
    if (proof := cutter.next_frame()) is None:
        return
    session = listener.receive_proof(proof)
    assert listener.state is State.DONE
    genuine, _, its_proof = HONEST[session.role]
    assert (hello, proof) == (genuine[4:], its_proof[4:]), "a session was forged"


def listen_seeds() -> list[bytes]:
    refusal = refusal_frame(PeerRefused("key_unknown", "no such key", wait_ms=5))
    whole = [hello + proof for hello, _, proof in HONEST.values()]
    return [*whole, HONEST[Role.PROBE][0] + refusal, HONEST[Role.PROBE][1]]


def dial(data: bytes) -> None:
    """Only the listener's own answer to this hello, unchanged, ends in a session."""
    dialer = dialer_side()
    dialer.hello()
    dialer.receive(data)
    assert dialer.state is State.DONE
    assert data == HONEST[Role.CONDUIT][1][4:], "a session was forged"


def dial_seeds() -> list[bytes]:
    refusals = [PeerRefused("half_open", "détails", wait_ms=1000), ProtocolViolation("bad_proof", "no")]
    return [HONEST[Role.CONDUIT][1][4:], HONEST[Role.PROBE][1][4:], *[refusal_frame(each)[4:] for each in refusals]]


# --- messages ---------------------------------------------------------------------------------------------------------


def message_seeds() -> list[bytes]:
    messages = [
        Welcome(CURSORS, {}, "ActiveReadWrite", {A: Incarnation(1), B: Incarnation(2)}, (1, 2), CURSORS),
        Tails(CURSORS, 5),
        Ack(3, CURSORS, CURSORS, 100),
        Nack(1, "gap", A, Incarnation(2), Shard(1), 9, 0, "seq 9 is wanted"),
        Ping(1, 2, CURSORS, {}, "StandbyReadOnly"),
        Pong(1, "Offline", CURSORS, {}, CURSORS, CURSORS, 4),
        Query(1, "status", b"\x80"),
        Reply(1, True, True, b"\x80"),
        Goodbye("needs_bootstrap", "the log begins at 9"),
        *[Batch(A, Incarnation(0xA1), 1, b.first_seq, b.last_seq, BatchTag(bytes(32)), b) for b in blocks()],
    ]
    return [b"".join(map(bytes, encode_message(message))) for message in messages]


def decode_one_message(data: bytes) -> None:
    """What is decoded is a message that encodes and decodes to itself."""
    for shard_count in (SHARDS, None):
        message = decode_message(data, shard_count=shard_count)
        again = decode_message(b"".join(map(bytes, encode_message(message))), shard_count=shard_count)
        if isinstance(message, Batch):
            assert isinstance(again, Batch)
            assert message.block.encoded == again.block.encoded
            assert (message.tag, message.batch_seq, message.incarnation) == (
                again.tag,
                again.batch_seq,
                again.incarnation,
            )
        else:
            assert message == again


# --- payloads, blocks, cursors ----------------------------------------------------------------------------------------


def decode_one_payload(data: bytes) -> None:
    """What is decoded encodes and decodes to itself."""
    if data:
        operation = decode_payload(data[0], data[1:])
        assert decode_payload(data[0], encode_payload(operation)) == operation


def payload_seeds() -> list[bytes]:
    return [bytes((OP_OF[type(operation)],)) + encode_payload(operation) for operation in OPERATIONS]


def read_block(data: bytes) -> None:
    """A block that passes can be cut and joined without a change, and its rows can be read."""
    block = Block(data)
    block.check_rows()
    rows = list(block.rows())
    assert [row.seq for row in rows] == list(range(block.first_seq, block.last_seq + 1))
    assert len(list(block.entries(A))) == block.count
    for vector in block.seen_table:
        decode_cursors(vector)
    middle = block.first_seq + block.count // 2
    if block.first_seq < middle and not any(block.flags):
        halves = [
            block.cut(first_seq=block.first_seq, last_seq=middle - 1),
            block.cut(first_seq=middle, last_seq=block.last_seq),
        ]
        whole = join_blocks(halves)
        assert [row[:-1] for row in whole.rows()] == [row[:-1] for row in rows]


def read_cursors(data: bytes) -> None:
    """One vector has one encoding."""
    cursors = decode_cursors(data)
    shards = struct.unpack_from("<H", data, 2)[0]
    assert encode_cursors(cursors, shards) == data


def read_incarnations(data: bytes) -> None:
    """One table has one encoding."""
    assert encode_incarnations(decode_incarnations(data)) == data


# --- questions and answers of peers -----------------------------------------------------------------------------------

ACCOUNTS = {"acked": {"beta": [1, 1]}, "accounts": {str(JOURNAL): [[1] * 10, [1] * 10]}, "damage": []}
TOLD = {"own": str(JOURNAL), "received": {str(JOURNAL): [1, 1]}, "sent": {"beta": [1, 1]}}


def judge_answers(data: bytes) -> None:
    """Whatever two sites answer about their accounts, there is a verdict."""
    frames = FrameCutter(bytes_max=HANDSHAKE_BYTES_MAX)
    frames.feed(data)
    answers = []
    while (frame := frames.next_frame()) is not None and len(answers) < 4:
        answers.append(unpack_value(frame))
    if len(answers) == 4 and all(isinstance(answer, dict) for answer in answers):
        # PeerQueries.ask gives out maps only.
        names = ("alpha", "beta")
        judge_sums(dict(zip(names, answers, strict=False)), dict(zip(names, answers[2:], strict=True)), SHARDS)


def answer_seeds() -> list[bytes]:
    packed = [msgpack.packb(answer) for answer in (ACCOUNTS, ACCOUNTS, TOLD, TOLD)]
    quiet = [msgpack.packb({"unreachable": "it is quiet"}), packed[0], packed[2], packed[3]]
    return [b"".join(struct.pack(">I", len(each)) + each for each in answers) for answers in (packed, quiet)]


# --- clients ----------------------------------------------------------------------------------------------------------

SUBMIT = {
    "ops": [
        {"op": "create", "parent": 1, "name": b"f", "mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": None},
        {"op": "write", "inode": -1, "offset": 0, "data": b"data"},
        {"op": "truncate", "inode": 9, "length": 4},
    ]
}


def take_requests(data: bytes) -> None:
    """Requests are taken one by one, and a submit's operations are checked to the last field."""
    frames = ClientFrames(items_max=REQUEST_ITEMS_MAX)
    frames.feed(data)
    while (message := frames.next()) is not None:
        request = parse_request(message)
        if request.method == "submit":
            assert parse_ops(request.args)


def request_seeds() -> list[bytes]:
    requests: list[tuple[str, dict[str, object]]] = [
        ("hello", {}),
        ("submit", SUBMIT),  # type: ignore[list-item]
        ("read", {"inode": 1, "offset": 0, "length": 4096}),
    ]
    whole = [encode_request(number, method, args) for number, (method, args) in enumerate(requests)]
    return [*whole, b"".join(whole)]


def take_responses(data: bytes) -> None:
    """A client takes whatever a site answers, or refuses it.

    It is the answer of its own user's site, so that arrays may announce as many items as their frame has bytes.
    """
    frames = ClientFrames()
    frames.feed(data)
    while (message := frames.next()) is not None:
        parse_response(message)


def response_seeds() -> list[bytes]:
    return [
        encode_response(1, {"results": [[1, 2, 3]], "error": None}),
        encode_error(2, code="ENOENT", message="/x: there is no such name", errno=2),
    ]


def mend_lengths(data: bytes) -> bytes:
    """One frame of all that is there."""
    return struct.pack(">I", len(data[4:])) + data[4:] if len(data) > 4 else data


WIRE = [
    Target("frames", cut_frames, (), frame_seeds, words=(b"\0\0\0\1", b"\0\0\x10\0", b"\0\0\x10\1")),
    Target(
        "sealed_frames",
        open_frames,
        (ProtocolViolation,),
        lambda: [b"".join(SEALED), SEALED[1] + SEALED[0], SEALED[0] * 2, REFLECTED],
    ),
    Target(
        "listener",
        listen,
        (PeerRefused, ProtocolViolation),
        listen_seeds,
        words=(b"CFSR", b"CFSR\1", b"CFSR\3", b"CFSR\4", b"fuzz", b"k1"),
    ),
    Target("dialer", dial, (PeerRefused, ProtocolViolation), dial_seeds, words=(b"CFSR\2", b"CFSR\4", b"half_open")),
    Target("messages", decode_one_message, (ProtocolViolation,), message_seeds, words=HEADS, steps_per_byte=60),
    Target("payloads", decode_one_payload, (PayloadInvalid,), payload_seeds, words=HEADS),
    Target("blocks", read_block, (ValueError,), lambda: [bytes(b.encoded) for b in blocks()], steps_per_byte=60),
    Target("cursors", read_cursors, (ValueError,), lambda: [encode_cursors(CURSORS, SHARDS), encode_cursors({}, 4)]),
    Target("incarnations", read_incarnations, (ValueError,), lambda: [encode_incarnations({A: JOURNAL.incarnation})]),
    Target(
        "peer_answers",
        judge_answers,
        (ProtocolViolation,),
        answer_seeds,
        words=(*HEADS, str(JOURNAL).encode(), b"accounts", b"damage", b"sent"),
        memory_base=ITEMS_MAX * NESTED_ROOM_BYTES,
        memory_per_byte=256,
    ),
    Target(
        "client_requests",
        take_requests,
        (ProtocolViolation, OperationRefused),
        request_seeds,
        words=(*HEADS, b"ops", b"op", b"submit", b"create", b"write"),
        mend=mend_lengths,
        memory_base=REQUEST_ITEMS_MAX * NESTED_ROOM_BYTES,
        memory_per_byte=128,
    ),
    Target(
        "client_responses",
        take_responses,
        (ProtocolViolation,),
        response_seeds,
        words=HEADS,
        mend=mend_lengths,
        memory_per_byte=NESTED_ROOM_BYTES,
    ),
]
