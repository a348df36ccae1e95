"""What is on the disk of a site that was stopped: the sums of its store, and what it should not have left behind."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from claudefs_repl.journal import JournalId
from claudefs_repl.observations import Leftover, ShardSums
from nodes.recovery import STORE_FILE
from nodes.store.schema import read_applied
from nodes.store.sums import Showing, count_dead_letters, count_showing, read_all_sums


def read_store_sums(data_dir: Path) -> dict[JournalId, list[ShardSums]]:
    """What the store of a site that does not run counts of every journal; what is durable is counted elsewhere."""
    with contextlib.closing(sqlite3.connect(data_dir / STORE_FILE)) as connection:
        applied, all_sums = read_applied(connection), read_all_sums(connection)
        showing, dead = count_showing(connection), count_dead_letters(connection)
    found: dict[JournalId, list[ShardSums]] = {}
    for journal, cursors in applied.items():
        sums = all_sums[journal]
        for shard, cursor in enumerate(cursors):
            shown = showing.get((journal, shard), Showing())
            letters = dead.get((journal, shard), 0)
            found.setdefault(journal, []).append(
                ShardSums(
                    durable=0,
                    applied=cursor,
                    folded=sums.folded[shard],
                    chain=sums.chains[shard],
                    current=shown.current,
                    lost=shown.lost,
                    superseded=sums.folded[shard] - shown.current - shown.lost - letters,
                    dead_letters=letters,
                )
            )
    return found


def find_leftovers(site: str, data_dir: Path, sockets: list[Path]) -> Iterator[Leftover]:
    """What a site that was stopped in order should have removed."""
    for path in sorted(data_dir.rglob("*")):
        if path.suffix in (".new", ".tmp"):
            yield Leftover(site, "file", str(path.relative_to(data_dir)))
    for path in sockets:
        if path.exists():
            yield Leftover(site, "socket", str(path))
