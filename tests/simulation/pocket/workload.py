"""Clients at every host of a pocket cluster: random operations on few names, and what they were told."""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from contextlib import suppress
from typing import Any

import trio

from claudefs_repl.journal import Op
from claudefs_repl.observations import Acknowledged, Attempt, Outcome
from nodes.client import ClientError, SiteClient, SiteUnreachable

ENTRY_OPS = {
    "create": Op.CREATE,
    "mkdir": Op.MKDIR,
    "symlink": Op.SYMLINK,
    "link": Op.LINK,
    "remove": Op.UNLINK,
    "rmdir": Op.UNLINK,
    "move": Op.RENAME,
    "name": Op.RENAME,
    "write": Op.WRITE,
    "truncate": Op.TRUNCATE,
    "setattr": Op.SET_ATTR,
    "setxattr": Op.SET_XATTR,
    "removexattr": Op.REMOVE_XATTR,
}
WEIGHTS = {
    "create": 3,
    "put": 2,
    "write": 8,
    "rewrite": 3,
    "truncate": 1.5,
    "setattr": 1.5,
    "setxattr": 2.5,
    "removexattr": 0.5,
    "mkdir": 2,
    "rmdir": 1,
    "symlink": 0.5,
    "link": 1,
    "move": 3,
    "remove": 2,
    "several": 1.5,
    "private": 2,
    "private_again": 0.7,
}
DIRECTORIES = (b"", b"/d0", b"/d1", b"/d0/n0", b"/d1/n1", b"/d1/d0", b"/d0/d1")
NAMES = (b"n0", b"n1", b"n2", b"n3", b"d0", b"d1")
CLIENTS = 2
STEP_S = 3.0


class Workload:
    """All clients of a run.

    Attributes:
        attempts: in the order in which they ended.
        submitted: by host, the contents that were asked to be written.
        private: paths that one client alone changes.
    """

    def __init__(self, seed: int, hosts: dict[str, Any]) -> None:
        self.seed, self.hosts = seed, hosts
        self.attempts: list[Attempt] = []
        self.submitted: dict[str, set[int]] = defaultdict(set)
        self.private: set[bytes] = set()
        self._known: dict[bytes, str | None] = {}
        rng = random.Random(f"{seed} workload")
        self._pause_s = rng.choice((0.08, 0.25))

    async def run(self, duration_s: float) -> None:
        with trio.move_on_after(duration_s):
            async with trio.open_nursery() as nursery:
                for host in self.hosts.values():
                    for number in range(CLIENTS):
                        nursery.start_soon(_Client(self, host, number).run)

    def note(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)

    def remember(self, path: bytes, content: bytes | None) -> None:
        """What a private file has now; None if that is not known."""
        self._known[path] = None if content is None else f"{len(content)} bytes {zlib.crc32(content):08x}"

    def expected(self, *, but: set[str]) -> dict[str, str]:
        """What private files must show, but for those of hosts that lost their disk."""
        return {
            path.decode(): known
            for path, known in self._known.items()
            if known is not None and path.split(b"-")[1].decode() not in but
        }


class _Client:
    def __init__(self, workload: Workload, host: Any, number: int) -> None:
        self.workload, self.host, self.number = workload, host, number
        self.rng = random.Random(f"{workload.seed} {host.name} {number}")
        self.path = f"/p-{host.name}-{number}".encode()
        workload.private.add(self.path)

    async def run(self) -> None:
        while True:
            if self.host.is_ready:
                with suppress(SiteUnreachable, ClientError, trio.TooSlowError):
                    await self._use(self.host.client())
            await trio.sleep(0.1)

    async def _use(self, client: SiteClient) -> None:
        journal = self.host.recovered.journals.own.journal
        while True:
            with trio.fail_after(STEP_S):
                (kind,) = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
                ops = await self._plan(client, kind)
                if ops:
                    await self._submit(client, journal, kind, ops)
            await trio.sleep(self.rng.expovariate(1 / self.workload._pause_s))

    async def _submit(self, client: SiteClient, journal: Any, kind: str, ops: list[dict[str, Any]]) -> None:
        began_us = _now_us()
        contents = [op.get("data", op.get("value")) for op in ops]
        self.workload.submitted[self.host.name].update(zlib.crc32(data) for data in contents if data is not None)
        if kind == "private":
            self.workload.remember(self.path, None)
        outcome, code, entries = Outcome.UNKNOWN, None, ()
        try:
            answer = await client.call("submit", ops=ops)
            refused = answer["error"]
            outcome, code = (Outcome.ACKNOWLEDGED, None) if refused is None else (Outcome.REFUSED, refused["code"])
            entries = tuple(
                Acknowledged(
                    journal, shard, seq, inode, ENTRY_OPS[op["op"]], data if data is None else zlib.crc32(data)
                )
                for op, data, (inode, shard, seq) in zip(ops, contents, answer["results"], strict=False)
                if seq
            )
            if kind == "private" and refused is None:
                self.workload.remember(self.path, contents[1])
        except ClientError as error:
            outcome, code = Outcome.REFUSED, error.code
        finally:
            self.workload.note(Attempt(self.host.name, self.number, began_us, _now_us(), kind, outcome, code, entries))

    async def _plan(self, client: SiteClient, kind: str) -> list[dict[str, Any]]:
        rng = self.rng
        owner = {"uid": 1, "gid": 1, "mtime_ns": rng.randrange(1 << 40)}
        if kind == "private":
            data = self._content(900)
            made = {"op": "create", "parent": None, "name": None, "mode": 0o644, **owner}
            write = {"op": "write", "inode": -1, "offset": 0, "data": data}
            return [made, write, {"op": "name", "inode": -1, "to_parent": 1, "to_name": self.path[1:], "replace": True}]
        if kind == "private_again":
            return [{"op": "create", "parent": 1, "name": self.path[1:], "mode": 0o644, **owner}]
        if kind == "several":
            names = [b"x%d" % rng.randrange(300) for _ in range(rng.randrange(2, 6))]
            return [{"op": "create", "parent": 1, "name": name, "mode": 0o644, **owner} for name in names]
        directory = rng.choice(DIRECTORIES)
        parent = await self._find(client, directory or b"/")
        if parent is None:
            directory, parent = b"", 1
        name = rng.choice(NAMES)
        match kind:
            case "create":
                return [{"op": "create", "parent": parent, "name": name, "mode": 0o644, **owner}]
            case "mkdir":
                return [{"op": "mkdir", "parent": parent, "name": name, "mode": 0o755, **owner, "exist_ok": False}]
            case "symlink":
                return [{"op": "symlink", "parent": parent, "name": name, **owner, "target": self._content(20)}]
            case "put":
                made = {"op": "create", "parent": None, "name": None, "mode": 0o644, **owner}
                write = {"op": "write", "inode": -1, "offset": 0, "data": self._content(900)}
                return [made, write, {"op": "name", "inode": -1, "to_parent": parent, "to_name": name, "replace": True}]
            case "remove" | "rmdir":
                return [{"op": kind, "parent": parent, "name": name}]
            case "move":
                to = await self._find(client, rng.choice(DIRECTORIES) or b"/")
                names = {"from_name": name, "to_name": rng.choice(NAMES)}
                return [
                    {"op": "move", "from_parent": parent, "to_parent": to or 1, **names, "replace": rng.random() < 0.7}
                ]
        inode = await self._find(client, directory + b"/" + name)
        return [] if inode is None else self._change(kind, inode, parent)

    def _change(self, kind: str, inode: int, parent: int) -> list[dict[str, Any]]:
        rng = self.rng
        match kind:
            case "write":
                return [{"op": "write", "inode": inode, "offset": rng.randrange(1500), "data": self._content(500)}]
            case "rewrite":
                at = rng.randrange(300)
                return [
                    {"op": "write", "inode": inode, "offset": at + rng.randrange(60), "data": self._content(80)}
                    for _ in range(rng.randrange(2, 6))
                ]
            case "truncate":
                return [{"op": "truncate", "inode": inode, "length": rng.randrange(1200)}]
            case "setattr":
                return [{"op": "setattr", "inode": inode, "mode": rng.randrange(0o1000)}]
            case "setxattr":
                return [
                    {
                        "op": "setxattr",
                        "inode": inode,
                        "name": rng.choice((b"user.a", b"user.b")),
                        "value": self._content(40),
                    }
                ]
            case "removexattr":
                return [{"op": "removexattr", "inode": inode, "name": rng.choice((b"user.a", b"user.b"))}]
            case "link":
                return [{"op": "link", "inode": inode, "parent": parent, "name": rng.choice(NAMES)}]
        raise AssertionError(kind)

    def _content(self, most: int) -> bytes:
        token = f"{self.host.name}{self.number}.{self.rng.randrange(1 << 48):x}.".encode()
        return (token * (most // len(token) + 1))[: self.rng.randrange(len(token), max(most, len(token) + 1))]

    async def _find(self, client: SiteClient, path: bytes) -> int | None:
        if path == b"/":
            return 1
        try:
            return int((await client.call("resolve", path=path))["inode"])
        except ClientError as error:
            if error.code in ("ENOENT", "ENOTDIR"):
                return None
            raise


def _now_us() -> int:
    return round(trio.current_time() * 1e6)
