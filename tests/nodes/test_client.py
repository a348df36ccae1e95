from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from claudefs_repl.error import SiteUnknown
from claudefs_repl.topology import ClusterConfig
from nodes.client import WINDOW, ClientError, SiteClient, SiteUnreachable, connect_site
from nodes.config import load_cluster, write_cluster
from nodes.runtime import socket_path
from protocol.client import ClientFrames, Request, encode_error, encode_response, parse_request

Answer = Callable[[Request], Awaitable[bytes | None]]
"""None closes the connection."""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterConfig]:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    made = load_cluster(write_cluster(tmp_path, cluster_id="test"))
    yield made
    for site in made.sites:
        socket_path(site, made).unlink(missing_ok=True)


async def echo(request: Request) -> bytes | None:
    return encode_response(request.request_id, [request.method, request.args])


@asynccontextmanager
async def site_server(
    cluster: ClusterConfig, answer: Answer = echo, *, name: str = "alpha", says: dict[str, Any] | None = None
) -> AsyncIterator[None]:
    """A site's client service, in small: it answers each request in turn and reads none before."""
    hello = {"site": name, "site_id": 1, "pid": 1, "cluster_id": "test", "mode": "m", "version": 1, **(says or {})}

    async def serve(stream: trio.SocketStream) -> None:
        frames = ClientFrames()
        async with stream:
            try:
                while data := await stream.receive_some(65536):
                    frames.feed(data)
                    while (message := frames.next()) is not None:
                        request = parse_request(message)
                        is_hello = request.method == "hello"
                        reply = encode_response(request.request_id, hello) if is_hello else await answer(request)
                        if reply is None:
                            return
                        await stream.send_all(reply)
            except trio.BrokenResourceError:
                return

    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(socket_path(cluster.site(name), cluster)))
    sock.listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, [trio.SocketListener(sock)])
        yield
        nursery.cancel_scope.cancel()


async def test_a_call_gives_its_result(cluster: ClusterConfig) -> None:
    """A method with its arguments reaches the site, and its result comes back."""
    async with site_server(cluster), connect_site(cluster, "alpha") as client:
        assert client.hello["site"] == "alpha"
        assert await client.call("stat", inode=7, name=b"\xff") == ["stat", {"inode": 7, "name": b"\xff"}]


async def test_an_error_of_the_site_is_raised_with_all_it_tells(cluster: ClusterConfig) -> None:
    """A refused request raises ClientError with code, message, errno and exit status; the connection lives on."""

    async def refuse(request: Request) -> bytes | None:
        return encode_error(request.request_id, code="ENOENT", message="no /x", errno=2, exit=1)

    async with site_server(cluster, refuse), connect_site(cluster, "alpha") as client:
        for _ in range(2):
            with pytest.raises(ClientError, match="no /x") as caught:
                await client.call("resolve", path=b"/x")
            assert (caught.value.code, caught.value.errno, caught.value.exit_code) == ("ENOENT", 2, 1)


async def test_requests_may_be_under_way_together(cluster: ClusterConfig) -> None:
    """Many requests are sent before any answer is awaited, and each gets its own answer, in any order of waiting."""
    async with site_server(cluster), connect_site(cluster, "alpha") as client:
        handles = [await client.send("m", number=number) for number in range(WINDOW)]
        for number in reversed(range(WINDOW)):
            assert await handles[number] == ["m", {"number": number}]
            assert await handles[number].result() == ["m", {"number": number}]


async def test_no_more_than_the_window_is_under_way(cluster: ClusterConfig) -> None:
    """A sender waits for an answer before it exceeds the window."""
    asked, answered = itertools.count(1), 0
    gate = trio.Event()

    async def gated(request: Request) -> bytes | None:
        nonlocal answered
        await gate.wait()
        assert next(asked) - answered <= 3
        answered += 1
        return await echo(request)

    async with site_server(cluster, gated), connect_site(cluster, "alpha", window=2) as client:
        await client.send("m")
        await client.send("m")
        with trio.move_on_after(0) as scope:
            await client.send("m")
        assert scope.cancelled_caught
        gate.set()
        handles = [await client.send("m", number=number) for number in range(20)]
        assert [(await handle)[1]["number"] for handle in handles] == list(range(20))


async def test_large_answers_do_not_block_large_requests(cluster: ClusterConfig) -> None:
    """A site that writes its answer before it reads on does not lock up with a client that sends first."""

    async def large(request: Request) -> bytes | None:
        return encode_response(request.request_id, bytes(1 << 20))

    async with site_server(cluster, large), connect_site(cluster, "alpha") as client:
        handles = [await client.send("m", data=bytes(1 << 20)) for _ in range(8)]
        for handle in handles:
            assert len(await handle) == 1 << 20


async def test_tasks_may_share_a_connection(cluster: ClusterConfig) -> None:
    """Several tasks' calls on one connection each get their own answers."""
    found: dict[int, Any] = {}

    async def ask(client: SiteClient, number: int) -> None:
        found[number] = (await client.call("m", number=number, pad=bytes(number * 1000)))[1]["number"]

    async with site_server(cluster), connect_site(cluster, "alpha", window=4) as client, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(ask, client, number)
    assert found == {number: number for number in range(50)}


async def test_a_waiter_that_gives_up_takes_no_answer_from_others(cluster: ClusterConfig) -> None:
    """Cancelling one call leaves the others, and the connection, as they are."""
    gate = trio.Event()

    async def gated(request: Request) -> bytes | None:
        await gate.wait()
        return await echo(request)

    async with site_server(cluster, gated), connect_site(cluster, "alpha") as client:
        kept = await client.send("kept")
        with trio.move_on_after(0):
            await client.call("dropped")
        with trio.move_on_after(0):
            await kept
        gate.set()
        assert await kept == ["kept", {}]
        assert await client.call("after") == ["after", {}]


@pytest.mark.parametrize("reply", [None, b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\x01", encode_response(99, 1)])
async def test_a_broken_connection_fails_all_that_is_under_way(cluster: ClusterConfig, reply: bytes | None) -> None:
    """What was not answered raises SiteUnreachable, now and ever after, and says that its outcome is not known."""

    async def broken(request: Request) -> bytes | None:
        return reply

    async with site_server(cluster, broken), connect_site(cluster, "alpha") as client:
        handle = await client.send("one")
        for _ in range(2):
            with pytest.raises(SiteUnreachable, match="may or may not"):
                await handle
        with pytest.raises(SiteUnreachable, match="may or may not"):
            await client.send("two")


async def test_an_exception_in_the_user_s_code_stays_what_it_is(cluster: ClusterConfig) -> None:
    """The client wraps nothing in exception groups."""

    async def use() -> None:
        async with connect_site(cluster, "alpha") as client:
            await client.send("m")
            raise ZeroDivisionError

    async with site_server(cluster):
        with pytest.raises(ZeroDivisionError):
            await use()


async def test_a_site_that_is_down_says_how_to_start_it(cluster: ClusterConfig) -> None:
    """Without a socket the message has the site and the command; the exit status is 3."""
    with pytest.raises(SiteUnreachable, match=r"site alpha is down.*claudefs-repl up") as caught:
        async with connect_site(cluster, "alpha"):
            pass
    assert caught.value.exit_code == 3


async def test_a_socket_that_a_killed_site_left_is_a_site_that_is_down(cluster: ClusterConfig) -> None:
    """A socket file that nobody listens at is no site."""
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(socket_path(cluster.site("alpha"), cluster)))
    sock.close()
    with pytest.raises(SiteUnreachable, match="is down"):
        async with connect_site(cluster, "alpha"):
            pass


async def test_a_site_of_another_machine_is_told_with_its_ssh_command(tmp_path: Path) -> None:
    """An address that is not this machine's leads to the command for the machine that has it."""
    path = write_cluster(tmp_path)
    path.write_text(path.read_text().replace("127.0.0.2", "192.0.2.77"))
    with pytest.raises(SiteUnreachable, match=r"elsewhere.*ssh 192\.0\.2\.77 claudefs-repl"):
        async with connect_site(load_cluster(path), "beta"):
            pass


async def test_a_name_that_the_configuration_lacks_is_not_a_site_that_is_down(cluster: ClusterConfig) -> None:
    """An unknown site is the caller's mistake."""
    with pytest.raises(SiteUnknown, match="alpha, beta, gamma"):
        async with connect_site(cluster, "zeta"):
            pass


async def test_a_silent_site_is_told_to_be_paused(
    cluster: ClusterConfig, autojump_clock: trio.testing.MockClock
) -> None:
    """A site that accepts but does not answer is not waited for without end."""
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(socket_path(cluster.site("alpha"), cluster)))
    sock.listen()
    with pytest.raises(SiteUnreachable, match="fault resume alpha"):
        async with connect_site(cluster, "alpha"):
            pass
    sock.close()


@pytest.mark.parametrize("says", [{"site": "beta"}, {"cluster_id": "other"}])
async def test_another_site_at_the_socket_is_not_taken_for_the_one_asked(
    cluster: ClusterConfig, says: dict[str, str]
) -> None:
    """The site and its cluster must be those that the configuration tells."""
    async with site_server(cluster, says=says):
        with pytest.raises(SiteUnreachable, match="another one answers"):
            async with connect_site(cluster, "alpha"):
                pass
