"""The client service on a real socket: requests that no well-made client sends are answered, and end nothing."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from types import SimpleNamespace

import msgpack
import pytest
import trio

from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import Inode
from nodes.client_ops import OPS_MAX
from nodes.client_service import ClientService
from nodes.config import load_cluster, write_cluster
from nodes.events import make_logger
from nodes.runtime import SystemClock
from nodes.shown_ids import ShownIds
from nodes.store.local import OpResult, RequestOutcome
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import WriteGate
from protocol.client import REQUEST_ITEMS_MAX, ClientFrames, encode_request, parse_response


def nested(depth):
    return b"\x91" * depth + b"\xc0"


async def too_long(args):
    await trio.lowlevel.checkpoint()
    return bytes(9 << 20)


@pytest.fixture
async def served(tmp_path, nursery):
    store = await SqliteStore.open(tmp_path / "view.sqlite", shard_count=2)
    writes, requests = trio.open_memory_channel(256)
    cluster = load_cluster(write_cluster(tmp_path / "cluster"))
    service = ClientService(
        store=store,
        writes=writes,
        gate=WriteGate("alpha", SiteMode.ACTIVE_READ_WRITE),
        shown_ids=ShownIds(cluster, cluster.sites[0]),
        extra={"too_long": too_long},
        logger=make_logger(tmp_path / "events.jsonl", "alpha", SystemClock()),
    )
    ours, theirs = trio.socket.socketpair()
    client = trio.SocketStream(ours)
    nursery.start_soon(service.serve, trio.SocketStream(theirs))
    frames = ClientFrames()

    async def receive():
        with trio.fail_after(10):
            while (message := frames.next()) is None:
                data = await client.receive_some(65536)
                assert data, "the site hung up"
                frames.feed(data)
        return parse_response(message)

    async def ask(method, args):
        await client.send_all(encode_request(1, method, args))
        return await receive()

    yield SimpleNamespace(ask=ask, receive=receive, client=client, service=service, requests=requests)
    await client.aclose()
    with trio.CancelScope(shield=True):
        await store.close()


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("resolve", {}),
        ("resolve", {"path": 5}),
        ("resolve", {"path": "/text"}),
        ("resolve", {"path": b"/", "as_written": 1}),
        ("stat", {"inode": 1 << 63}),
        ("stat", {"inode": {}}),
        ("stat", {"inode": None}),
        ("list", {"inode": 1, "after": 5, "limit": 10}),
        ("list", {"inode": 1, "after": None, "limit": "x"}),
        ("list", {"inode": 1, "after": None, "limit": float("nan")}),
        ("list", {"inode": 1, "after": None, "limit": -1}),
        ("read", {"inode": 1, "offset": float("inf"), "length": 1}),
        ("read", {"inode": 1, "offset": 0, "length": "x"}),
        ("read", {"inode": 1, "offset": 0, "length": 5 << 20}),
        ("xattrs", {"inode": -(1 << 64) + (1 << 63)}),
    ],
)
async def test_a_read_with_wrong_arguments_is_refused(served, method, args):
    """Arguments of a wrong type or range are a bad request, and the next request is served."""
    answer = await served.ask(method, args)
    assert answer.error is not None
    assert answer.error.code == "EINVAL"
    assert (await served.ask("resolve", {"path": b"/"})).error is None


@pytest.mark.parametrize("op", [{}, {"op": None}, {"op": []}, {"op": {}}, {"op": b"mkdir"}, [], 5])
async def test_an_operation_without_a_known_word_is_refused(served, op):
    """Whatever stands where the operation's word belongs, it is a bad request, and the next request is served."""
    answer = await served.ask("submit", {"ops": [op]})
    assert answer.error is not None
    assert answer.error.code == "EINVAL"
    assert (await served.ask("resolve", {"path": b"/"})).error is None


async def test_an_array_that_announces_more_items_than_a_request_has_is_refused_before_room_is_taken(served):
    """A thousand arrays in one another, each announcing all that there is, end the connection and nothing else."""
    body = (b"\xdd" + struct.pack(">I", REQUEST_ITEMS_MAX + 1)) * 1000
    body += bytes(REQUEST_ITEMS_MAX)
    tracemalloc.start()
    try:
        await served.client.send_all(struct.pack(">I", len(body)) + body)
        with trio.fail_after(10):
            assert await served.client.receive_some(10) == b""
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


async def test_a_value_nested_deeper_than_repr_goes_is_refused(served):
    """A submit whose field is a thousand lists in one another is a bad request."""
    op = msgpack.packb({"op": "mkdir"})
    op = bytes([op[0] + 1]) + op[1:] + msgpack.packb("parent") + nested(1010)
    body = b"\x93\x01\xa6submit\x81\xa3ops\x91" + op
    await served.client.send_all(len(body).to_bytes(4, "big") + body)
    answer = await served.receive()
    assert answer.error is not None
    assert "parent is out of range" in answer.error.message


async def test_an_answer_longer_than_a_frame_is_an_error_of_the_request(served):
    """A file with more attributes than a frame holds, say, is refused in words; the connection goes on."""
    answer = await served.ask("too_long", {})
    assert answer.error is not None
    assert answer.error.code == "EMSGSIZE"
    assert (await served.ask("resolve", {"path": b"/"})).error is None


async def test_files_given_up_with_a_connection_are_given_up_in_parts(served):
    """A client that leaves thousands of nameless files holds up no group commit: no request is longer than a client's."""
    made = itertools.count(2)
    create = {"op": "create", "parent": None, "name": None, "mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0}
    for _ in range(3):
        await served.client.send_all(encode_request(1, "submit", {"ops": [create] * OPS_MAX}))
        waiting = await served.requests.receive()
        results = [OpResult(Inode(next(made)), 0, 1) for _ in waiting.request.ops]
        waiting.outcome = RequestOutcome(results, None)
        waiting.done.set()
        assert (await served.receive()).error is None
    await served.client.aclose()
    given_up = set()
    with trio.fail_after(10):
        while len(given_up) < 3 * OPS_MAX:
            waiting = await served.requests.receive()
            assert len(waiting.request.ops) <= OPS_MAX
            given_up |= {op.inode for op in waiting.request.ops}
            waiting.outcome = RequestOutcome([], None)
            waiting.done.set()
    assert given_up == set(range(2, 3 * OPS_MAX + 2))
