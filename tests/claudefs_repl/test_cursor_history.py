"""When a cursor passed: true, however much was thinned out, and as exact as can be told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claudefs_repl import cursor_history
from claudefs_repl.cursor_history import PARTS_OF_AGE, SAMPLES_MAX, CursorHistory, Passing

steps = st.lists(
    st.tuples(st.floats(0, 1000), st.tuples(st.integers(0, 3), st.integers(0, 3))), min_size=1, max_size=120
)


@settings(max_examples=200, deadline=None)
@given(steps=steps, room=st.integers(4, 20))
def test_the_true_time_lies_in_the_span_that_is_told(steps, room):
    """Against a list of every single move; nothing that passed is forgotten, nothing else is said to have passed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursor_history, "SAMPLES_MIN", room)
        patch.setattr(cursor_history, "SAMPLES_MAX", room)
        now_s, cursors = 5.0, (2, 0)
        history = CursorHistory(now_s, cursors)
        moves = []
        for pause_s, gains in steps:
            now_s += pause_s
            cursors = tuple(map(sum, zip(cursors, gains, strict=True)))
            history.note(now_s, cursors)
            moves.append((now_s, cursors))
            assert len(history) <= room
    for shard in (0, 1):
        assert history.when(shard, cursors[shard] + 1) is None
        for seq in range(1, cursors[shard] + 1):
            told = history.when(shard, seq)
            if seq <= (2, 0)[shard]:
                assert told == Passing(None, 5.0)
                continue
            true_s = next(at_s for at_s, passed in moves if passed[shard] >= seq)
            assert told.after_s <= true_s <= told.by_s


def test_without_thinning_times_are_exact():
    """A move that is still a sample of its own is told to the instant."""
    history = CursorHistory(0.0, (0,))
    for number in range(SAMPLES_MAX):
        history.note(number + 1.0, (2 * number + 2,))
    assert history.when(0, 7) == Passing(4.0, 4.0)
    assert history.when(0, 8) == Passing(4.0, 4.0)


def test_hours_of_busy_moves_are_told_within_a_part_of_their_age():
    """Half a million moves over seven hours: any of them is told within two parts of its age, in bounded memory."""
    history = CursorHistory(0.0, (0, 0, 0, 0))
    moves, apart_s = 500_000, 0.05
    for number in range(1, moves + 1):
        history.note(number * apart_s, (number, number, 0, 0))
    assert len(history) <= SAMPLES_MAX
    now_s = moves * apart_s
    for seq in range(1, moves, 997):
        told = history.when(1, seq)
        assert told.after_s <= seq * apart_s <= told.by_s
        assert told.by_s - told.after_s <= max(apart_s, 2 * (now_s - told.by_s) / PARTS_OF_AGE)


def test_cursors_that_fall_begin_anew():
    """A peer whose disk was wiped has what it has now from an unknown time on."""
    history = CursorHistory(0.0, (0, 0))
    history.note(1.0, (5, 5))
    history.note(2.0, (9, 3))
    assert history.when(0, 5) == Passing(None, 2.0)
    assert history.when(1, 4) is None
    history.note(3.0, (9, 4))
    assert history.when(1, 4) == Passing(3.0, 3.0)


def test_many_shards_take_no_more_memory():
    """The number of samples falls with the number of shards."""
    history = CursorHistory(0.0, (0,) * 256)
    for number in range(2000):
        history.note(number + 1.0, (number + 1,) * 256)
        assert len(history) <= 256
    assert history.when(255, 1).by_s >= 1.0
