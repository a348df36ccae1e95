"""What one client asks for next: a random operation on a random name, from a seed, and the request that does it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from claudefs_repl.journal import ROOT_INODE

Op = dict[str, Any]
Stat = Mapping[str, Any]
Resolve = Callable[[bytes], Awaitable[Stat | None]]

OPERATIONS: Mapping[str, float] = {
    "create": 4.0,
    "put": 3.0,
    "several": 2.0,
    "write": 6.0,
    "truncate": 1.0,
    "setattr": 1.0,
    "setxattr": 1.0,
    "removexattr": 0.3,
    "mkdir": 1.5,
    "rmdir": 1.0,
    "movedir": 1.0,
    "symlink": 0.6,
    "link": 0.6,
    "move": 1.5,
    "remove": 1.5,
}
"""Operations of a mix and their weights where a scenario gives none. `put` fills a nameless file and names it.
`several` makes some empty files with one request, whose entries are of several shards."""
PLACES = 4
"""Directories beneath each of the two that a client works in, so that moves go somewhere; in each of them as many again."""
ROOT: Stat = {"inode": ROOT_INODE, "kind": "dir"}
WITH_TWO_PLACES = ("move", "movedir", "link")
OF_DIRECTORIES = ("mkdir", "rmdir", "movedir")
DEEP = 0.3
"""How often a place is a directory in one of those: it has less in it, so that it is removed and moved more often."""
PUT_WRITES = 3
SEVERAL = 4


@dataclass(frozen=True, slots=True)
class Step:
    """One random choice: what to do, and in which names.

    Attributes:
        directory: where the name is.
        other_directory, other_name: where to, for operations that have a second place.
        token: what its content begins with, so that no two writes of a run are equal.
    """

    kind: str
    directory: bytes
    name: bytes
    other_directory: bytes
    other_name: bytes
    token: bytes
    size: int
    number: int


class Chooser:
    """A client's random choices. The same seed and place give the same ones, whatever the sites answer."""

    def __init__(
        self, *, seed: int, site: str, client: int, mix: Mapping[str, float], shared: float, names: int, bytes_max: int
    ) -> None:
        self._rng = random.Random(f"{seed} {site} {client}")  # noqa: S311 - a workload, not secrets
        self._prefix = f"{site}-{client}"
        self._kinds = [kind for kind, weight in mix.items() if weight > 0]
        self._weights = [mix[kind] for kind in self._kinds]
        self._shared = shared
        self._names = names
        self._directories = min(names, PLACES)
        self._bytes_max = bytes_max
        self._number = 0

    @property
    def own_directory(self) -> bytes:
        """What only this client works in."""
        return f"/{self._prefix}".encode()

    def next(self) -> Step:
        """The next choice."""
        rng = self._rng
        self._number += 1
        top = b"/shared" if rng.random() < self._shared else self.own_directory
        kind = rng.choices(self._kinds, self._weights)[0]
        letter, count = (b"d", self._directories) if kind in OF_DIRECTORIES else (b"f", self._names)
        return Step(
            kind=kind,
            directory=self._place(top),
            name=b"%s%d" % (letter, rng.randrange(count)),
            other_directory=self._place(top),
            other_name=b"%s%d" % (letter, rng.randrange(count)),
            token=f"{self._prefix} {self._number} ".encode(),
            size=rng.randint(64, self._bytes_max),
            number=self._number,
        )

    def _place(self, top: bytes) -> bytes:
        """A directory to work in: the top one, one in it, or one in that."""
        rng = self._rng
        depth = 2 if rng.random() < DEEP else rng.randrange(2)
        return top + b"".join(b"/d%d" % rng.randrange(self._directories) for _ in range(depth))


def content_of(step: Step, part: int = 0) -> bytes:
    """Bytes that no other write of the run has."""
    line = b"%s%d " % (step.token, part)
    return (line * (step.size // len(line) + 1))[: step.size]


async def plan_ops(step: Step, resolve: Resolve, now_ns: int) -> list[Op]:
    """The request that does a step, given what its places are now; none if there is nothing to do it to.

    A directory that is missing is made instead.

    Args:
        resolve: gives what is at a path, None if nothing is.
        now_ns: for times of files.
    """
    owner = {"uid": 1000, "gid": 1000, "mtime_ns": now_ns}
    path, missing = step.directory, b""
    while (directory := await resolve(path) if path else ROOT) is None:
        path, _, missing = path.rpartition(b"/")
    at = {"parent": directory["inode"], "name": missing or step.name}
    making: list[Op] = [{"op": "mkdir", **at, "mode": 0o755, **owner, "exist_ok": True}]
    if missing or step.kind == "mkdir":
        return making
    nameless: Op = {"op": "create", "parent": None, "name": None, "mode": 0o644, **owner}
    if step.kind == "put":
        writes = [
            {"op": "write", "inode": -1, "offset": i * step.size, "data": content_of(step, i)}
            for i in range(PUT_WRITES)
        ]
        name = {"op": "name", "inode": -1, "to_parent": at["parent"], "to_name": step.name, "replace": True}
        return [nameless, *writes, name]
    if step.kind == "several":
        naming = {"op": "name", "to_parent": at["parent"], "replace": True}
        return [nameless] * SEVERAL + [
            {**naming, "inode": -1 - i, "to_name": b"%s-%d" % (step.name, i)} for i in range(SEVERAL)
        ]
    found = await resolve(step.directory + b"/" + step.name)
    if found is not None:
        other = await resolve(step.other_directory) if step.kind in WITH_TWO_PLACES else None
        return _change(step, at, found["inode"], found["kind"], None if other is None else other["inode"])
    # There is nothing to change yet: it is made instead.
    if step.kind in OF_DIRECTORIES:
        return making
    if step.kind == "symlink":
        return [{"op": "symlink", **at, **owner, "target": step.token.strip()}]
    if step.kind in ("remove", "move"):
        return []
    return [
        {"op": "create", **at, "mode": 0o644, **owner},
        {"op": "write", "inode": -1, "offset": 0, "data": content_of(step)},
    ]


def _change(step: Step, at: Op, inode: int, kind: str, other_directory: int | None) -> list[Op]:
    there = {"to_parent": other_directory, "to_name": step.other_name}
    match step.kind:
        case "rmdir":
            return [{"op": "rmdir", **at}]
        case "remove" if kind != "dir":
            return [{"op": "remove", **at}]
        case "move" | "movedir" if other_directory is not None:
            return [
                {"op": "move", "from_parent": at["parent"], "from_name": at["name"], **there, "replace": kind != "dir"}
            ]
        case "link" if kind != "dir" and other_directory is not None:
            return [{"op": "link", "inode": inode, "parent": other_directory, "name": step.other_name}]
        case "setattr":
            return [{"op": "setattr", "inode": inode, "mode": 0o600 + step.number % 64, "uid": 1000 + step.number % 7}]
        case "setxattr":
            return [{"op": "setxattr", "inode": inode, "name": b"user.note", "value": step.token}]
        case "removexattr":
            return [{"op": "removexattr", "inode": inode, "name": b"user.note"}]
        case "truncate" if kind == "file":
            return [{"op": "truncate", "inode": inode, "length": step.size // 2}]
        case "write" | "create" if kind == "file":
            offset = step.number % 5 * step.size // 2
            return [{"op": "write", "inode": inode, "offset": offset, "data": content_of(step)}]
    return []
