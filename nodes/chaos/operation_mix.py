"""What one client asks for next: a random operation on a random name, from a seed, and the request that does it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Op = dict[str, Any]
Stat = Mapping[str, Any]

OPERATIONS: Mapping[str, float] = {
    "create": 4.0,
    "put": 3.0,
    "write": 6.0,
    "truncate": 1.0,
    "setattr": 1.0,
    "setxattr": 1.0,
    "removexattr": 0.3,
    "mkdir": 1.5,
    "rmdir": 0.5,
    "symlink": 0.6,
    "link": 0.6,
    "move": 1.5,
    "remove": 1.5,
}
"""Operations of a mix and their weights where a scenario gives none. `put` fills a nameless file and names it."""
PLACES = 4
"""Directories beneath each of the two that a client works in, so that moves go somewhere."""
PUT_WRITES = 3


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
        places = [top, *(b"%s/d%d" % (top, i) for i in range(PLACES))]
        letter = b"d" if kind in ("mkdir", "rmdir") else b"f"
        count = PLACES if letter == b"d" else self._names
        return Step(
            kind=kind,
            directory=top if letter == b"d" else rng.choice(places),
            name=b"%s%d" % (letter, rng.randrange(count)),
            other_directory=rng.choice(places),
            other_name=b"f%d" % rng.randrange(self._names),
            token=f"{self._prefix} {self._number} ".encode(),
            size=rng.randint(64, self._bytes_max),
            number=self._number,
        )


def content_of(step: Step, part: int = 0) -> bytes:
    """Bytes that no other write of the run has."""
    line = b"%s%d " % (step.token, part)
    return (line * (step.size // len(line) + 1))[: step.size]


def plan_ops(step: Step, *, directory: int, other_directory: int | None, found: Stat | None, now_ns: int) -> list[Op]:
    """The request that does a step, given what its places are now; none if there is nothing to do it to.

    Args:
        directory: the inode of the step's directory.
        other_directory: likewise of its other one, None if it is not there.
        found: the object of its name, None if there is none.
        now_ns: for times of files.
    """
    owner = {"uid": 1000, "gid": 1000, "mtime_ns": now_ns}
    at = {"parent": directory, "name": step.name}
    if step.kind == "mkdir":
        return [{"op": "mkdir", **at, "mode": 0o755, **owner, "exist_ok": True}]
    if step.kind == "put":
        writes = [
            {"op": "write", "inode": -1, "offset": i * step.size, "data": content_of(step, i)}
            for i in range(PUT_WRITES)
        ]
        name = {"op": "name", "inode": -1, "to_parent": directory, "to_name": step.name, "replace": True}
        return [{"op": "create", "parent": None, "name": None, "mode": 0o644, **owner}, *writes, name]
    if found is None:
        if step.kind == "symlink":
            return [{"op": "symlink", **at, **owner, "target": step.token.strip()}]
        if step.kind in ("rmdir", "remove", "move"):
            return []
        # There is nothing to change yet: it is made instead.
        return [
            {"op": "create", **at, "mode": 0o644, **owner},
            {"op": "write", "inode": -1, "offset": 0, "data": content_of(step)},
        ]
    return _change(step, at, found["inode"], found["kind"], other_directory)


def _change(step: Step, at: Op, inode: int, kind: str, other_directory: int | None) -> list[Op]:
    there = {"to_parent": other_directory, "to_name": step.other_name}
    match step.kind:
        case "rmdir":
            return [{"op": "rmdir", **at}]
        case "remove" if kind != "dir":
            return [{"op": "remove", **at}]
        case "move" if other_directory is not None:
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
