"""What the clients saw: each write that was asked for, when, and whether it was acknowledged, refused or left unknown."""

from __future__ import annotations

import enum
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from claudefs_repl.journal import JournalId, Op

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


class Outcome(enum.Enum):
    """How a request ended, as its client knows it."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """No answer came: it may or may not have been done."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One entry that a site said is durable.

    Attributes:
        content_crc32: of the bytes that a write or an extended attribute carries; None of other operations.
    """

    journal: JournalId
    shard: int
    seq: int
    inode: int
    op: Op
    content_crc32: int | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request of one client.

    Attributes:
        began_us: by the machine's clock, as are all times of a run.
        kind: the operation of the mix that it was.
        code: why it was refused.
        entries: what was acknowledged of it; also of one that was refused in its middle.
    """

    site: str
    client: int
    began_us: int
    ended_us: int
    kind: str
    outcome: Outcome
    code: str | None
    entries: tuple[Acknowledged, ...]


@dataclass(slots=True)
class History:
    """All attempts, in the order in which they ended. Appended to by the clients, read when they are done."""

    attempts: list[Attempt] = field(default_factory=list)

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
