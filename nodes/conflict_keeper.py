"""The conflict keeper: how many conflicts are open, what the content that lost takes, and giving it up beyond the limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.topology import ConflictsConfig
from nodes.store.keeping import GivenUp, KeptContent, count_kept
from nodes.store.sqlite_store import SqliteStore

GIVE_UP_S = 0.1
"""A tenth of each of the housekeeper's rounds at most goes to giving content up."""
REST = 10
"""Counting reads the whole list: after a count comes a rest of so many times what it took."""


class ConflictKeeper:
    """Counts conflicts and keeps their content within the limit. Owned by the housekeeper; any task may ask for the count.

    Attributes:
        config: replaced by a reload.
    """

    def __init__(self, *, store: SqliteStore, config: ConflictsConfig, logger: FilteringBoundLogger) -> None:
        self.config = config
        self._store = store
        self._logger = logger
        self._counting = trio.Lock()
        self._kept = KeptContent()
        self._counted_at: Any = None
        self._rest_until_s = 0.0

    async def count(self) -> KeptContent:
        """The list in numbers: counted anew if anything was applied or forgotten since, and the rest is over."""
        async with self._counting:
            state = self._store.applied, self._store.forgotten
            began_s = trio.current_time()
            if state != self._counted_at and began_s >= self._rest_until_s:
                self._kept = await self._store.read(lambda view: count_kept(view.connection))
                self._counted_at = state
                ended_s = trio.current_time()
                self._rest_until_s = ended_s + REST * (ended_s - began_s)
            return self._kept

    async def keep_within_limit(self) -> bool:
        """Give up content beyond the limit, in bounded steps for a part of a second; whether any may have gone.

        Raises:
            DiskFull: there was no room to do it.
        """
        limit = self.config.keep_bytes_max
        kept = await self.count()
        if not limit or kept.kept_bytes <= limit:
            return False
        excess_bytes = kept.kept_bytes - limit
        until_s = trio.current_time() + GIVE_UP_S
        while excess_bytes > 0 and trio.current_time() < until_s:
            given_up, freed_bytes = await self._store.give_up(excess_bytes)
            self._tell(given_up, limit)
            excess_bytes -= freed_bytes
        self._counted_at = None
        return True

    def _tell(self, given_up: Sequence[GivenUp], limit: int) -> None:
        for each in given_up:
            self._logger.error(
                "conflict_content_given_up",
                id=each.conflict.id,
                kind=each.conflict.kind,
                inode=f"{each.conflict.inode:x}",
                content_bytes=each.content_bytes,
                limit_bytes=limit,
            )
