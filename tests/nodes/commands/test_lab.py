"""What demo and bench look at: processes, cursors, figures."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.commands.bench_journal import ENTRY_BYTES, Target, append_op, covers
from nodes.commands.figures import Figure, percentile
from nodes.commands.lab import process_use


def test_own_process() -> None:
    """A running process has used memory and time; one that is gone cannot be asked."""
    used = process_use(os.getpid())
    assert used.peak_bytes > 1 << 20
    assert used.cpu_s >= 0
    with pytest.raises(OSError):
        process_use(2**22 + 1)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_percentile_is_the_nearest_rank(values: list[float], part: float) -> None:
    """At least that part of the values is at or below it, and fewer are below any smaller value."""
    found = percentile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= math.ceil(part * len(values))
    assert sum(value < found for value in values) < math.ceil(part * len(values))


def test_nothing_measured_is_no_percentile() -> None:
    """Without values there is no figure, rather than an invented one."""
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1), st.lists(st.integers(0, 9), max_size=4))
def test_a_target_is_reached_when_every_entry_is_covered(entries: list[tuple[int, int]], cursor: list[int]) -> None:
    """A cursor reaches a target when it is at or beyond each entry in its shard; of another journal it never does."""
    target = Target("1:a")
    target.add([[7, shard, seq] for shard, seq in entries])
    reached = all(shard < len(cursor) and seq <= cursor[shard] for shard, seq in entries)
    assert target.reached({"1:a": cursor}) == reached
    assert not target.reached({"2:a": [9] * 4})
    assert covers(cursor, {}) is True


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=50, unique=True))
def test_appended_entries_never_overlap(indexes: list[int]) -> None:
    """Each entry of a load has its own place in its file, so that each is a write of its own."""
    made = [append_op([5, 6, 7], index) for index in indexes]
    assert len({(op["inode"], op["offset"]) for op in made}) == len(made)
    assert {len(op["data"]) for op in made} == {ENTRY_BYTES}


@pytest.mark.parametrize(
    ("value", "text"), [(200_000, "200,000"), (1234.5, "1,234"), (12.345, "12.35"), (345.6, "346")]
)
def test_figures_for_people(value: float, text: str) -> None:
    """A figure is shown to about three digits."""
    assert Figure("x", value, "").text == text
