"""A site's store without threads or files: what the tests of the folding rules fold into."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import pytest

from claudefs_repl.block import Block
from claudefs_repl.checkpoint import Cursors
from claudefs_repl.clock import HybridClock
from claudefs_repl.journal import JournalId
from claudefs_repl.stability import StableFrontier, Word
from nodes.store.fold import Fold, FoldReport
from nodes.store.forgetting import Forgetting
from nodes.store.local import LocalOp, LocalRequest, OpResult, RequestOutcome, StampSource
from nodes.store.schema import set_up
from nodes.store.validate import fold_local
from nodes.store.view import View
from nodes.store.watched import Watched

SHARDS = 2
START_US = 1_700_000_000_000_000
COMPARED = ("inode", "extent", "xattr", "link", "contested", "trash", "dead_letter", "journal")
"""Every table that is a function of the entries folded; tombs and interned vectors depend on what is still on its way."""


class MemorySite:
    """One store in memory, with the journal that its site writes.

    Attributes:
        blocks: what is in its journal, by shard.
        former: the journals that it wrote before, likewise.
    """

    def __init__(self, site_id: int = 1, *, incarnation: int = 0xFFFF_FFFF_FFFF_FFF0, shard_count: int = SHARDS):
        self.shard_count = shard_count
        self.journal = JournalId(site_id, incarnation + site_id)
        self.blocks: dict[int, list[Block]] = {shard: [] for shard in range(shard_count)}
        self.former: dict[JournalId, dict[int, list[Block]]] = {}
        self.wall_us = START_US
        self._open(sqlite3.connect(":memory:", isolation_level=None))

    def _open(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        set_up(connection, shard_count=self.shard_count)
        self.view = View(connection)
        self.stable: Cursors = {}
        self.watched = Watched(connection)
        self._frontier: StableFrontier | None = None
        self._heard_of: list[JournalId] = []
        self._forgetting = Forgetting()
        self._clock = HybridClock()

    def restart(self) -> None:
        """Only what is in the store is left."""
        again = sqlite3.connect(":memory:", isolation_level=None)
        again.deserialize(self.connection.serialize())
        self.connection.close()
        self._open(again)

    @property
    def journals(self) -> dict[JournalId, dict[int, list[Block]]]:
        """All that it has written, by journal and shard."""
        return {**self.former, self.journal: self.blocks}

    def begin_journal(self) -> None:
        """What it writes from now on is in another journal."""
        self.former[self.journal] = self.blocks
        self.journal = JournalId(self.journal.origin, self.journal.incarnation - 100)
        self.blocks = {shard: [] for shard in range(self.shard_count)}

    def run(self, *requests: Sequence[LocalOp]) -> list[RequestOutcome]:
        self.connection.execute("BEGIN")
        fold = Fold(self.connection, stable=self.stable, watched=self.watched)
        self._clock.observe(fold.timestamp_us)
        next_seqs = tuple(seq + 1 for seq in fold.cursors_of(self.journal))
        source = StampSource(self.journal, self.shard_count, next_seqs, self._clock, self.wall_us)
        result = fold_local(fold, [LocalRequest(ops) for ops in requests], source)
        fold.save()
        self.connection.execute("COMMIT")
        for block in result.blocks:
            self.blocks[block.shard].append(block)
        return result.outcomes

    def do(self, *ops: LocalOp) -> list[OpResult]:
        (outcome,) = self.run(ops)
        if outcome.error is not None:
            raise outcome.error
        return outcome.results

    def take(self, journal: JournalId, blocks: Sequence[Block]) -> FoldReport:
        self.connection.execute("BEGIN")
        fold = Fold(self.connection, stable=self.stable, watched=self.watched)
        report = fold.fold_blocks(journal, blocks)
        fold.save()
        self.connection.execute("COMMIT")
        return report

    def pull(self, other: MemorySite) -> None:
        for shard in range(self.shard_count):
            self.take(other.journal, other.blocks[shard])

    def hear_and_forget(self, others: Sequence[MemorySite], *, heard: Sequence[bool]) -> None:
        """Some of the others tell where they are, and what is stable by now is forgotten."""
        if self._frontier is None:
            self._frontier = StableFrontier([other.journal.origin for other in others])
        current = [other.journal for other in others]
        if self._heard_of not in ([], current):
            self._frontier.restart()
        self._heard_of = current
        for other, is_heard in zip(others, heard, strict=True):
            if is_heard:
                tails = {
                    journal: tuple(blocks[-1].last_seq if blocks else 0 for blocks in shards.values())
                    for journal, shards in other.journals.items()
                }
                self._frontier.hear(other.journal.origin, Word(other.view.applied(), tails))
        self.stable = self._frontier.advance(self.view.applied())
        self.connection.execute("BEGIN")
        while not self._forgetting.step(self.connection, self.stable, rows_max=7):
            pass
        self.connection.execute("COMMIT")
        self.watched.reload(self.connection, 1)

    def dump(self) -> dict[str, list[tuple]]:
        queries = {table: f"SELECT * FROM {table}" for table in COMPARED}
        # Which number a vector has is each store's own affair.
        queries["move"] = "SELECT child, stamp, parent, name, is_rename, skipped FROM move"
        return {table: sorted(self.connection.execute(query).fetchall(), key=repr) for table, query in queries.items()}

    def listing(self, directory: int = 1) -> dict[bytes, int]:
        entries, more = self.view.list_dir(directory, after=None, limit=1000)
        assert not more
        return {entry.name: entry.inode for entry in entries}

    def close(self) -> None:
        self.connection.close()


@pytest.fixture(scope="session")
def memory_site() -> type[MemorySite]:
    return MemorySite


@pytest.fixture
def site():
    site = MemorySite()
    yield site
    site.close()


@pytest.fixture
def pair():
    pair = MemorySite(1), MemorySite(2)
    yield pair
    for site in pair:
        site.close()
