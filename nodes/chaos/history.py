"""What the clients saw: each write that was asked for, when, and whether it was acknowledged, refused or left unknown."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from claudefs_repl.journal import JournalId, Op
from claudefs_repl.observations import Acknowledged, Attempt, Outcome

ENTRY_OPS: Mapping[str, Op] = {
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
"""What an operation of a submit becomes in the journal."""


@dataclass(slots=True)
class History:
    """What all clients saw. Appended to by them, read when they are done.

    Attributes:
        attempts: in the order in which they ended.
        submitted: by site, the CRC-32 of every content that it was asked to write.
    """

    attempts: list[Attempt] = field(default_factory=list)
    submitted: dict[str, set[int]] = field(default_factory=dict)

    def note_contents(self, site: str, ops: list[dict[str, Any]]) -> None:
        """A site is asked to write these contents, whatever will come of it."""
        contents = (op.get("data", op.get("value")) for op in ops)
        self.submitted.setdefault(site, set()).update(zlib.crc32(each) for each in contents if each is not None)

    def acknowledged(self) -> Iterator[tuple[Attempt, Acknowledged]]:
        """Every entry that some site said is durable."""
        for attempt in self.attempts:
            for entry in attempt.entries:
                yield attempt, entry

    def outcomes(self) -> Counter[Outcome]:
        """How many attempts ended how."""
        return Counter(attempt.outcome for attempt in self.attempts)

    def refusals(self) -> Counter[str]:
        """How many were refused for what."""
        return Counter(attempt.code or "" for attempt in self.attempts if attempt.outcome is Outcome.REFUSED)


def acknowledged_entries(
    journal: JournalId, ops: list[dict[str, Any]], results: list[list[int]]
) -> tuple[Acknowledged, ...]:
    """What a site's answer to a submit says is durable; an operation that had nothing to do made no entry."""
    found = []
    for op, (inode, shard, seq) in zip(ops, results, strict=False):
        if seq:
            content = op.get("data", op.get("value"))
            crc32 = None if content is None else zlib.crc32(content)
            found.append(Acknowledged(journal, shard, seq, inode, ENTRY_OPS[op["op"]], crc32))
    return tuple(found)
