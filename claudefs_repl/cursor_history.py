"""When a cursor moved: a bounded history that grows coarser with age, asked when a seq passed.

Samples are kept so that neighbours lie no further apart than a part of their age. When the history is full, older samples
are merged; a merged sample knows the span that it stands for. So any time is told with how exact it is, and none is made up.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass

CELLS_MAX = 1 << 16
"""Cursors of one history, 512 KiB: one for each shard and sample."""
SAMPLES_MIN = 256
SAMPLES_MAX = 2048
"""With spans of 1/128 of their age, 2,048 samples reach from 10 ms back to a day; each more is 8 bytes for a shard."""
PARTS_OF_AGE = 128


@dataclass(frozen=True, slots=True)
class Passing:
    """When a seq passed, in the seconds of the clock that the samples were noted by.

    Attributes:
        after_s: not before this, None if it passed before the history began.
        by_s: not after this; equal to `after_s` if it is known exactly.
    """

    after_s: float | None
    by_s: float


class CursorHistory:
    """When the cursors of one journal passed their seqs. Owned by the actor that moves them; others only ask.

    Memory: at most CELLS_MAX + 2 * SAMPLES_MAX numbers of 8 bytes, 544 KiB, whatever happens.
    """

    __slots__ = ("_began_s", "_first", "_from", "_samples_max", "_seqs", "_shard_count", "_upto")

    def __init__(self, at_s: float, cursors: tuple[int, ...]) -> None:
        """Begin with what has passed already, nobody here knows when."""
        self._shard_count = len(cursors)
        self._samples_max = max(SAMPLES_MIN, min(SAMPLES_MAX, CELLS_MAX // max(1, len(cursors))))
        self._begin(at_s, cursors)

    def _begin(self, at_s: float, cursors: tuple[int, ...]) -> None:
        self._began_s = at_s
        self._first = cursors
        # A sample i says: from _from[i] to _upto[i] the cursors moved to _seqs[i * shards : (i + 1) * shards].
        self._from, self._upto, self._seqs = array("d"), array("d"), array("Q")

    def __len__(self) -> int:
        return len(self._upto)

    def note(self, at_s: float, cursors: tuple[int, ...]) -> None:
        """Take where the cursors are now. One that is lower than before begins the history anew.

        Args:
            at_s: monotonic seconds, never lower than before.
            cursors: one seq for each shard.
        """
        last = tuple(self._seqs[-self._shard_count :]) if self._upto else self._first
        if cursors == last:
            return
        if any(now < before for now, before in zip(cursors, last, strict=True)):
            self._begin(at_s, cursors)
            return
        if len(self) == self._samples_max:
            self._thin(at_s)
        self._from.append(at_s)
        self._upto.append(at_s)
        self._seqs.extend(cursors)

    def when(self, shard: int, seq: int) -> Passing | None:
        """When a seq of a shard passed, None if it has not."""
        if seq <= self._first[shard]:
            return Passing(None, self._began_s)
        at = bisect_left(range(len(self)), seq, key=lambda sample: self._seqs[sample * self._shard_count + shard])
        return None if at == len(self) else Passing(self._from[at], self._upto[at])

    def _thin(self, now_s: float) -> None:
        """Merge samples whose span stays small beside their age, until a quarter of the room is free."""
        part = float(PARTS_OF_AGE)
        while len(self) > self._samples_max * 3 // 4:
            starts, ends, seqs = array("d"), array("d"), array("Q")
            for at in range(len(self)):
                start, end = self._from[at], self._upto[at]
                if starts and (end - starts[-1]) * part <= now_s - end:
                    ends[-1] = end
                    del seqs[-self._shard_count :]
                else:
                    starts.append(start)
                    ends.append(end)
                seqs.extend(self._seqs[at * self._shard_count : (at + 1) * self._shard_count])
            self._from, self._upto, self._seqs = starts, ends, seqs
            part /= 2
