"""The conflict teller: events of new conflicts, and the administrator's command, which hears of them as JSON.

A partition that heals can bring a hundred thousand conflicts in a second. So no more than `EVENTS_MAX` of them have an event
of their own in `WINDOW_S`; the others are one event with their number. The command is run once at a time, with all that
came since its last run and fits `BATCH_MAX`; of more it hears the number.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.journal import Inode, SiteId, Stamp
from claudefs_repl.topology import ClusterConfig, ConflictsConfig, SiteConfig
from nodes.events import utc_text
from nodes.seams import WallClock
from nodes.store.conflict_places import conflict_path
from nodes.store.conflict_view import Conflict
from nodes.store.sqlite_store import SqliteStore
from nodes.wakeup import Wakeup

EVENTS_MAX = 50
"""A screen of them; whoever wants all asks for the list."""
WINDOW_S = 10.0
BATCH_MAX = 1000
"""Conflicts in one document, about half a megabyte, and those that wait for the next one."""
DOCUMENT_VERSION = 1


class ConflictTeller:
    """Tells of new conflicts. Owned by the task that runs it; `tell` is for the applier.

    Attributes:
        config: replaced by a reload.
    """

    def __init__(
        self,
        *,
        cluster: ClusterConfig,
        site: SiteConfig,
        store: SqliteStore,
        report: Callable[[SiteId, Inode], Awaitable[None]],
        wall_clock: WallClock,
        logger: FilteringBoundLogger,
    ) -> None:
        """`report` hears of the loser of each conflict."""
        self.config: ConflictsConfig = cluster.conflicts
        self._cluster = cluster
        self._site = site
        self._store = store
        self._report = report
        self._wall_clock = wall_clock
        self._logger = logger
        self._events_left = EVENTS_MAX
        self._untold: Counter[str] = Counter()
        self._waiting: deque[Conflict] = deque()
        self._dropped = 0
        self._wakeup = Wakeup()

    async def run(self) -> None:
        """Sum up the events of each window and run the command, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sum_up)
            nursery.start_soon(self._run_commands)

    async def tell(self, conflicts: Sequence[Conflict]) -> None:
        """Take new conflicts; the command hears of them later."""
        for conflict in conflicts:
            if self._events_left:
                self._events_left -= 1
                self._log(conflict)
            else:
                self._untold[conflict.kind] += 1
            await self._report(conflict.loser.origin, Inode(conflict.inode))
        if self.config.command:
            room = BATCH_MAX - len(self._waiting)
            self._waiting.extend(conflicts[:room])
            self._dropped += max(0, len(conflicts) - room)
            self._wakeup.notify()

    def _log(self, conflict: Conflict) -> None:
        self._logger.warning(
            "conflict_found",
            id=conflict.id,
            kind=conflict.kind,
            inode=f"{conflict.inode:x}",
            what=conflict.name or conflict.detail,
            loser_site_id=conflict.loser.origin,
            winner_site_id=conflict.winner.origin,
            rule=conflict.rule,
        )

    async def _sum_up(self) -> None:
        try:
            while True:
                await trio.sleep(WINDOW_S)
                self._end_window()
        finally:
            self._end_window()

    def _end_window(self) -> None:
        if self._untold:
            self._logger.warning(
                "conflicts_found", count=self._untold.total(), kinds=dict(sorted(self._untold.items()))
            )
            self._untold.clear()
        self._events_left = EVENTS_MAX

    async def _run_commands(self) -> None:
        while True:
            await self._wakeup.wait()
            conflicts, dropped = list(self._waiting), self._dropped
            self._waiting.clear()
            self._dropped = 0
            if self.config.command and conflicts:
                document = await self._document(conflicts, dropped)
                reason = await run_command(self.config, document)
                if reason is not None:
                    self._logger.error("conflict_command_failed", reason=reason, conflicts=len(conflicts))

    async def _document(self, conflicts: Sequence[Conflict], dropped: int) -> bytes:
        paths = await self._store.read(lambda view: [conflict_path(view, conflict) for conflict in conflicts])
        document = {
            "version": DOCUMENT_VERSION,
            "site": self._site.name,
            "time": utc_text(self._wall_clock.now_us()),
            "conflicts": [self._map(*pair) for pair in zip(conflicts, paths, strict=True)],
            "not_told": dropped,
        }
        return json.dumps(document).encode() + b"\n"

    def _map(self, conflict: Conflict, path: bytes | None) -> dict[str, Any]:
        return {
            "id": conflict.id,
            "kind": conflict.kind,
            "path": None if path is None else path.decode("utf-8", "backslashreplace"),
            "inode": f"{conflict.inode:x}",
            "loser": self._stamp_map(conflict.loser),
            "winner": self._stamp_map(conflict.winner),
            "rule": conflict.rule,
        }

    def _stamp_map(self, stamp: Stamp) -> dict[str, Any]:
        site = self._cluster.by_id(stamp.origin)
        name = None if site is None else site.name
        return {"site": name, "site_id": stamp.origin, "time": utc_text(stamp.timestamp_us)}


async def run_command(config: ConflictsConfig, document: bytes) -> str | None:
    """Run the command once, with a document on its stdin; why it failed, None if it ended with status 0.

    What it prints goes where the site's own output goes. One that takes too long is ended.
    """
    program = config.command[0]
    try:
        with trio.move_on_after(config.command_timeout_s) as scope:
            done = await trio.run_process(list(config.command), stdin=document, check=False)
    except* OSError as group:
        leaf: BaseException = group
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        reason = leaf.strerror if isinstance(leaf, OSError) else str(leaf)
        failure = f"{program} cannot be run: {reason}"
    else:
        if scope.cancelled_caught:
            failure = f"{program} did not end within {config.command_timeout_s:g} s"
        else:
            failure = f"{program} ended with status {done.returncode}" if done.returncode else ""
    return failure or None
