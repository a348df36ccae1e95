"""Files that one client alone writes: of each it is known what every site must show in the end."""

from __future__ import annotations

import zlib
from collections.abc import Container
from random import Random
from typing import Any

from claudefs_repl.journal import ROOT_INODE
from claudefs_repl.observations import Outcome

AGAIN = 0.3
"""How often a client asks to make its file although it is there, which must be refused."""
BYTES_MAX = 900
OWNER = {"uid": 1000, "gid": 1000}


class PrivateFiles:
    """What clients know of the files that nobody else has.

    Attributes:
        paths: of all that were written, with the site of their client.
        failures: what was answered as it cannot be.
    """

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}
        self.failures: list[str] = []
        self._known: dict[str, str | None] = {}
        self._numbers: dict[tuple[str, int], int] = {}

    def plan(self, site: str, client: int, rng: Random, now_ns: int) -> list[dict[str, Any]]:
        """The next request: to put new content into the file, or to make what is there already."""
        path = self._path(site, client)
        at = {"mode": 0o644, **OWNER, "mtime_ns": now_ns}
        if self._known.get(path) is not None and rng.random() < AGAIN:
            return [{"op": "create", "parent": ROOT_INODE, "name": path[1:].encode(), **at}]
        token = f"{site} {client} {rng.getrandbits(48):x} ".encode()
        data = (token * (BYTES_MAX // len(token) + 1))[: rng.randint(len(token), BYTES_MAX)]
        self.paths[path], self._known[path] = site, None
        return [
            {"op": "create", "parent": None, "name": None, **at},
            {"op": "write", "inode": -1, "offset": 0, "data": data},
            {"op": "name", "inode": -1, "to_parent": ROOT_INODE, "to_name": path[1:].encode(), "replace": True},
        ]

    def note(self, site: str, client: int, ops: list[dict[str, Any]], outcome: Outcome) -> None:
        """A request of `plan` was answered, or not."""
        path = self._path(site, client)
        if outcome is Outcome.UNKNOWN:
            # It may still be done, after what comes next: that is about another file.
            self._numbers[site, client] = self._numbers.get((site, client), 0) + 1
        elif outcome is Outcome.ACKNOWLEDGED and len(ops) == 1:
            self.failures.append(f"P2: {site}: {path} was made, though its client had been told that it is there")
        elif outcome is Outcome.ACKNOWLEDGED:
            self._known[path] = describe(ops[1]["data"])

    def _path(self, site: str, client: int) -> str:
        return f"/private-{site}-{client}-{self._numbers.get((site, client), 0)}"

    def expected(self, *, but: Container[str]) -> dict[str, str]:
        """What must be shown, but for the files of some sites."""
        return {path: known for path, known in self._known.items() if known and self.paths[path] not in but}


def describe(data: bytes) -> str:
    """A file's content in a word."""
    return f"{len(data)} bytes {zlib.crc32(data):08x}"
