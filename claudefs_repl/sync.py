"""Cutting batches: from blocks as they lie in the log to batches as they travel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from claudefs_repl.block import ENTRIES_MAX, SEEN_BYTES_MAX, SEEN_MAX, Block, join_blocks
from claudefs_repl.conduit import gather_by_shard


def cut_batches(blocks: Sequence[Block], *, batch_bytes_max: int) -> Iterator[Block]:
    """Join neighbours of each shard into blocks of at most a number of body bytes.

    A block that is larger by itself travels alone. Blocks of different shards have no order between them.
    """
    for run in gather_by_shard(blocks).values():
        yield from _join_run(run, batch_bytes_max)


def _join_run(run: Sequence[Block], batch_bytes_max: int) -> Iterator[Block]:
    pending: list[Block] = []
    body_bytes = entries = 0
    vectors: set[bytes] = set()
    for block in run:
        seen = block.seen_table
        if pending and (
            body_bytes + len(block.body) > batch_bytes_max
            or entries + block.count > ENTRIES_MAX
            or len(vectors.union(seen)) > SEEN_MAX
            or sum(map(len, vectors.union(seen))) > SEEN_BYTES_MAX
        ):
            yield join_blocks(pending)
            pending, body_bytes, entries, vectors = [], 0, 0, set()
        pending.append(block)
        body_bytes += len(block.body)
        entries += block.count
        vectors.update(seen)
    if pending:
        yield join_blocks(pending)
