"""Clusters of real processes for tests: made on ports of their own, asked as a user asks them, never left behind."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import trio

from claudefs_repl.operations import path_text
from claudefs_repl.topology import ClusterConfig
from nodes.client import connect_site
from nodes.commands.compare import compare_trees
from nodes.commands.get import get_tree
from nodes.commands.lab import ask_site, reserved_ports, wait_writable
from nodes.commands.put import FILES_AT_ONCE, put_tree
from nodes.commands.transfer_report import TransferReport
from nodes.config import load_cluster, write_cluster
from nodes.key_files import make_keys, write_keys
from nodes.launcher import Launcher
from nodes.recovery import STORE_FILE
from nodes.runtime import SystemClock, events_path, mark_new, site_pid, socket_candidates
from nodes.store.view import View
from tests.cluster.forked import Forker

PORTS = range(10_000, 20_000, 16)
"""Below those of the laboratory and those that Linux gives to outgoing connections."""
LIMIT_S = 60.0
"""For anything that is waited for: only a broken site takes as long on a busy machine."""
POLL_S = 0.05
QUICK: dict[str, dict[str, object]] = {
    "failover": {"check_interval_ms": 200, "recovery_threshold": 1},
    "startup": {"startup_wait_s": 5.0},
    "replication": {"reconnect_max_s": 0.5, "drain_deadline_s": 3.0},
    "rate_limit": {"max_auth_attempts_per_minute": 100_000},
}
"""A cluster that is soon ready, and soon notices."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has its background jobs ignore Ctrl-C, and so would the programs that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def with_quick(settings: dict[str, dict[str, object]] | None) -> dict[str, dict[str, object]]:
    merged = {section: dict(values) for section, values in QUICK.items()}
    for section, values in (settings or {}).items():
        merged.setdefault(section, {}).update(values)
    return merged


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def memory_file() -> BinaryIO:
    return open(os.memfd_create("command"), "r+b")


class RecordingClient:
    """A site's client that remembers which names the site has confirmed to be durable."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.named: set[bytes] = set()

    async def call(self, method: str, /, **args: Any) -> Any:
        answer = await self._client.call(method, **args)
        if method == "submit" and answer["error"] is None:
            self.named |= {op["to_name"] for op in args["ops"] if op["op"] == "name"}
            self.named |= {op["name"] for op in args["ops"] if op["op"] in ("link", "symlink")}
        return answer


class Lab:
    """A cluster under test, and the ways to use, ask and break it."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.cluster: ClusterConfig = launcher.cluster
        self.directory = self.cluster.path.parent

    @property
    def names(self) -> list[str]:
        return [site.name for site in self.cluster.sites]

    def data_dir(self, name: str) -> Path:
        return self.cluster.site(name).data_dir

    async def start(self, *names: str) -> None:
        """Start sites (all of them if none are named) and return when they take writes."""
        chosen = names or tuple(self.names)
        await self.launcher.start_all(chosen)
        await self.until_writable(*chosen)

    async def until_writable(self, *names: str) -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(wait_writable, self.cluster, name)

    async def kill(self, *names: str) -> None:
        for name in names:
            self.launcher.processes[name].kill()
        for name in names:
            await self.launcher.processes[name].wait()

    async def cli(
        self, *arguments: str | bytes, stdin: bytes = b"", limit_s: float = LIMIT_S, config: Path | None = None
    ) -> Done:
        """Run a command as a user does, to its end."""
        command = [sys.executable, "-m", "nodes", "-c", str(config or self.cluster.path), *arguments]
        with trio.fail_after(limit_s), contextlib.ExitStack() as stack:
            given, out, err = (stack.enter_context(memory_file()) for _ in range(3))
            given.write(stdin)
            given.seek(0)
            process = await trio.lowlevel.open_process(command, stdin=given, stdout=out, stderr=err)
            try:
                code = await process.wait()
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            out.seek(0)
            err.seek(0)
            return Done(code, out.read(), err.read().decode(errors="replace"))

    async def ok(self, *arguments: str | bytes, stdin: bytes = b"") -> Done:
        """Run a command that has to succeed."""
        done = await self.cli(*arguments, stdin=stdin)
        assert done.code == 0, f"{arguments}: exit {done.code}\n{done.err}\n{done.out!r}"
        assert "Traceback" not in done.err
        return done

    async def start_cli(self, nursery: trio.Nursery, *arguments: str) -> tuple[trio.Process, Path]:
        """Start a command that something happens to while it runs, and the file that gets what it prints.

        It does not outlive the nursery.
        """
        command = [sys.executable, "-m", "nodes", "-c", str(self.cluster.path), *arguments]
        output = self.directory / f"output-of-{arguments[0]}-{len(list(self.directory.iterdir()))}"
        with output.open("wb") as file:
            run = functools.partial(trio.run_process, command, check=False, stdout=file, stderr=file)
            process: trio.Process = await nursery.start(run)
        return process, output

    async def put(
        self,
        site: str,
        local: Path,
        path: str,
        *,
        report: TransferReport | None = None,
        named: set[bytes] | None = None,
    ) -> TransferReport:
        """Carry a tree to a site; `named` gathers the names that the site confirmed, whatever happens then."""
        with trio.fail_after(LIMIT_S):
            async with connect_site(self.cluster, site, window=FILES_AT_ONCE) as client:
                recording = RecordingClient(client)
                if named is not None:
                    recording.named = named
                now_ns = SystemClock().now_us() * 1000
                return await put_tree(recording, os.fsencode(local), path.encode(), now_ns=now_ns, report=report)

    async def get(self, site: str, path: str, local: Path) -> TransferReport:
        with trio.fail_after(LIMIT_S):
            async with connect_site(self.cluster, site, window=FILES_AT_ONCE) as client:
                report = TransferReport()
                await get_tree(client, path.encode(), os.fsencode(local), report=report)
                return report

    async def assert_same_at(self, site: str, path: str, original: Path) -> None:
        """Get a tree of a site and compare it with the original, byte for byte."""
        copy = self.directory / f"copy-of-{original.name}-from-{site}"
        report = await self.get(site, path, copy)
        assert report.complete, report.problems
        found = compare_trees(os.fsencode(original), os.fsencode(copy))
        assert found.equal, [(path_text(one.path), one.what) for one in found.differences]
        shutil.rmtree(copy)

    async def assert_same_everywhere(self, path: str, original: Path) -> None:
        for name in self.names:
            await self.assert_same_at(name, path, original)

    async def ask(self, site: str, method: str, **args: Any) -> Any:
        """One question to one site that runs."""
        answer: Any = None

        async def answered() -> bool:
            nonlocal answer
            answer = await ask_site(self.cluster, site, method, **args)
            return answer is not None

        await self.until(answered, f"{site} answers {method}")
        return answer

    async def status(self, site: str) -> dict[str, Any]:
        status: dict[str, Any] = await self.ask(site, "status", scope="site")
        return status

    async def until(
        self, condition: Callable[[], Awaitable[bool] | bool], what: str, *, limit_s: float = LIMIT_S
    ) -> None:
        """Wait for a condition."""
        with trio.move_on_after(limit_s):
            while True:
                holds = condition()
                if isinstance(holds, bool):
                    met = holds
                else:
                    met = await holds
                if met:
                    return
                await trio.sleep(POLL_S)
        raise AssertionError(f"after {limit_s:g} s it is not so that {what}\n{self.tell()}")

    async def converge(self, *names: str, limit_s: float = LIMIT_S) -> str:
        """Wait until sites (all if none are named) have the same cursors; their one digest."""
        chosen = names or tuple(self.names)

        async def level() -> bool:
            cursors = []
            for name in chosen:
                status = await ask_site(self.cluster, name, "status", scope="site")
                if status is None:
                    return False
                cursors += [status["received"], status["applied"]]
            reached = [{key: seqs for key, seqs in each.items() if any(seqs)} for each in cursors]
            return all(each == reached[0] for each in reached)

        await self.until(level, f"{', '.join(chosen)} have the same cursors", limit_s=limit_s)
        digests = {name: await self.digest(name) for name in chosen}
        assert len(set(digests.values())) == 1, digests
        return digests[chosen[0]]

    async def digest(self, site: str) -> str:
        with trio.fail_after(LIMIT_S):
            async with connect_site(self.cluster, site) as client:
                answer = await client.call("digest", scope="site")
        assert answer["dead_letters"] == 0
        digest: str = answer["digest"]
        return digest

    def nameless(self, name: str) -> int:
        """Files that a site made and that have no name, as its view has them on disk."""
        site = self.cluster.site(name)
        with contextlib.closing(sqlite3.connect(site.data_dir / STORE_FILE)) as connection:
            view = View(connection)
            own = [journal for journal in view.applied() if journal.origin == site.site_id]
            return sum(len(view.nameless(journal)) for journal in own)

    def events(self, site: str, name: str | None = None) -> list[dict[str, Any]]:
        """What a site has logged, or only the events of one name."""
        path = events_path(self.cluster.site(site))
        if not path.exists():
            return []
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        return [event for event in events if name in (None, event["event"])]

    async def until_event(self, site: str, name: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """Wait for so many events of a name with some fields; the last of them."""

        def found() -> list[dict[str, Any]]:
            return [one for one in self.events(site, name) if fields.items() <= one.items()]

        await self.until(lambda: len(found()) >= count, f"{site} logs {name} {fields} {count} times")
        return found()[-1]

    def tell(self) -> str:
        """The last events of every site, for the message of a failure."""
        return "\n".join(json.dumps(event) for name in self.names for event in self.events(name)[-12:])

    def kill_leftovers(self) -> list[str]:
        """Kill whatever still runs of this cluster; the names of those sites."""
        left = []
        for site in self.cluster.sites:
            if (pid := site_pid(site)) is not None:
                left.append(site.name)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for path in socket_candidates(site, self.cluster):
                path.unlink(missing_ok=True)
        return left


MakeLab = Callable[..., Awaitable[Lab]]


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    with Forker() as forker:
        yield forker


@pytest.fixture
def how_processes_start(forker: Forker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites and commands are forked from a process that has imported the program."""
    monkeypatch.setattr(trio.lowlevel, "open_process", forker.open_process)


@pytest.fixture
async def make_lab(tmp_path: Path, how_processes_start: None) -> AsyncIterator[MakeLab]:
    """Makes clusters; at the end of the test, however it ends, all of their processes are gone."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            sites: int = 3, *, settings: dict[str, dict[str, object]] | None = None, start: bool = True
        ) -> Lab:
            first = stack.enter_context(reserved_ports(sites, PORTS))
            directory = tmp_path / f"cluster-{first}"
            path = write_cluster(directory, sites, first, cluster_id=f"test-{first}", settings=with_quick(settings))
            cluster = load_cluster(path)
            write_keys(cluster.keys_dir, make_keys(cluster.sites, os.urandom))
            mark_new(cluster)
            lab = Lab(await stack.enter_async_context(Launcher(cluster)))
            stack.callback(lab.kill_leftovers)
            if start:
                await lab.start()
            return lab

        yield make
        with trio.CancelScope(shield=True):
            # Paused or not, in order or not: nothing outlives the test.
            await stack.aclose()


@pytest.fixture
def make_tree() -> Callable[[Path], Path]:
    """Writes a tree with one of each thing that a site carries."""
    return write_odd_tree


def write_odd_tree(root: Path) -> Path:
    (root / "dir" / "deeper" / "deepest").mkdir(parents=True)
    (root / "empty dir").mkdir()
    (root / "empty file").touch()
    (root / "dir" / "text").write_text("content of a text\n" * 40)
    (root / "dir" / "large").write_bytes(bytes(range(256)) * 4096 + b"the end")
    (root / "set-uid").write_bytes(b"#!/bin/sh\n")
    (root / "dir" / "read-only").write_bytes(b"read me")
    os.link(root / "set-uid", root / "dir" / "hard link")
    os.link(root / "set-uid", root / "dir" / "deeper" / "another hard link")
    os.symlink("../dir/text", root / "empty dir" / "link")
    os.symlink("nowhere/at all", root / "dangling")
    os.symlink(b"target \xff\xfe", os.fsencode(root) + b"/link to no UTF-8")
    with open(os.fsencode(root) + b"/not UTF-8 \xff\xfe", "wb") as file:
        file.write(b"a name is bytes\n")
    os.mkdir(os.fsencode(root) + b"/dir/\xe9t\xe9")
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(3 << 20)
        sparse.seek(1 << 20)
        sparse.write(b"in the middle")
    with contextlib.suppress(OSError):  # a file system without them: then there is nothing to carry
        os.setxattr(root / "empty file", "user.comment", b"an extended attribute \x00\xff")
        os.setxattr(root / "dir", "user.of-a-directory", b"")
    (root / "set-uid").chmod(0o4755)
    (root / "dir" / "read-only").chmod(0o400)
    (root / "empty dir").chmod(0o1777)
    times = [(path, 1_000_000_000_123_456_789 + i * 1_000_000_007) for i, path in enumerate(sorted(root.rglob("*")))]
    for path, mtime_ns in reversed(times):
        os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
    os.utime(root, ns=(123_456_789, 123_456_789))
    return root


@pytest.fixture
def make_files() -> Callable[..., Path]:
    """Writes many files whose names and contents are their own, so that any of them can be told from all others."""

    def make(root: Path, count: int, *, size: int = 3000, large: int = 0, large_size: int = 2 << 20) -> Path:
        tag = root.name
        for i in range(count):
            directory = root / f"d{i % 10}"
            directory.mkdir(parents=True, exist_ok=True)
            line = f"{tag} {i} ".encode()
            (directory / f"{tag}-{i}").write_bytes((line * (size // len(line) + 1))[:size])
        for i in range(large):
            line = f"{tag} large {i} ".encode()
            (root / f"{tag}-large-{i}").write_bytes((line * (large_size // len(line) + 1))[:large_size])
        return root

    return make
