"""File data: last writer wins for each byte, whatever order runs arrive in."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.journal import FILE_BYTES_MAX, Incarnation, JournalId, Shard, SiteId, Stamp
from nodes.store.causality import Cause, run_name
from nodes.store.extents import data_runs, drop_runs, truncate_run, write_run
from nodes.store.fold import Fold

SPAN = 40
pieces = st.tuples(st.integers(0, SPAN), st.one_of(st.none(), st.binary(max_size=12)))


JOURNAL = JournalId(SiteId(1), Incarnation(1))
SEEN = encode_cursors({}, 2)


def cause(number: int) -> Cause:
    stamp = Stamp(number, *JOURNAL, Shard(0), number)
    return Cause(stamp, stamp.pack(), SEEN, run_name(SEEN), is_local=False)


@contextmanager
def judge_of(site):
    """A fold in which the entries 1 to 999 of one journal have seen the same."""
    fold = Fold(site.connection)
    fold.causality.note(JOURNAL, Shard(0), first_seq=1, last_seq=999, seen=SEEN)
    yield fold.judge


def put(site, number: int, offset: int, data: bytes | None, inode: int = 7) -> None:
    with judge_of(site) as judge:
        if data is None:
            truncate_run(judge, cause(number), inode, offset)
        else:
            write_run(judge, cause(number), inode, offset, data)


def rows_of(connection):
    rows = connection.execute("SELECT low, high, stamp, data FROM extent WHERE inode = 7 ORDER BY low").fetchall()
    return [(low, high, Stamp.unpack(stamp).timestamp_us, data) for low, high, stamp, data in rows]


@settings(deadline=None, max_examples=200)
@given(data=st.data(), writes=st.lists(pieces, min_size=1, max_size=12))
def test_any_order_of_arrival_gives_what_the_order_of_stamps_gives(memory_site, data, writes):
    """Runs agree byte for byte with a map that the writes went into by stamp, and do not overlap."""
    model: dict[int, tuple[int, int | None]] = {}
    for stamp, (offset, content) in enumerate(writes):
        span = range(offset, SPAN + 20) if content is None else range(offset, offset + len(content))
        for at in span:
            model[at] = stamp, None if content is None else content[at - offset]
    site = memory_site()
    for stamp in data.draw(st.permutations(range(len(writes)))):
        put(site, stamp + 1, *writes[stamp])
    stored: dict[int, tuple[int, int | None]] = {}
    for low, high, stamp, content in rows_of(site.connection):
        assert low < high
        assert content is None or len(content) == high - low
        for at in range(low, min(high, SPAN + 20)):
            assert at not in stored
            stored[at] = stamp - 1, None if content is None else content[at - low]
    assert stored == model
    site.close()


@settings(deadline=None)
@given(
    writes=st.lists(pieces, min_size=1, max_size=8),
    low=st.integers(0, SPAN + 20),
    length=st.integers(0, SPAN),
)
def test_reading_a_range_gives_just_its_bytes(memory_site, writes, low, length):
    """Data comes in order, inside the range, and what is not told is zero."""
    site = memory_site()
    whole = bytearray(SPAN * 3)
    for stamp, (offset, content) in enumerate(writes):
        put(site, stamp, offset, content)
        if content is None:
            whole[offset:] = bytes(len(whole) - offset)
        else:
            whole[offset : offset + len(content)] = content
    found = bytearray(length)
    end = low
    for at, content in data_runs(site.connection, 7, low, low + length):
        assert end <= at <= at + len(content) <= low + length
        found[at - low : at - low + len(content)] = content
        end = at + len(content)
    assert found == whole[low : low + length]
    site.close()


def test_a_late_truncate_cuts_only_what_is_older(site):
    """Bytes stamped after the truncate stay, bytes stamped before it become a hole."""
    put(site, 1, 0, b"aaaaaaaa")
    put(site, 3, 4, b"cc")
    put(site, 2, 2, None)
    assert rows_of(site.connection) == [
        (0, 2, 1, b"aa"),
        (2, 4, 2, None),
        (4, 6, 3, b"cc"),
        (6, FILE_BYTES_MAX, 2, None),
    ]


def test_appending_after_a_truncate_costs_as_much_in_the_end_as_in_the_beginning(site):
    """The hole that a truncate leaves moves on before the appends; the file is its appends and one hole.

    What it cut off is remembered where the appends have not yet come.
    """
    put(site, 1, 0, b"old" * 100)
    put(site, 2, 0, None)
    statements: list[int] = []
    with judge_of(site) as judge:
        judge.causality.run_of(cause(3).stamp)  # looked up once
        for number in range(50):
            count = itertools.count()
            site.connection.set_trace_callback(lambda _statement, count=count: next(count))
            write_run(judge, cause(3 + number), 7, number * 10, b"0123456789")
            site.connection.set_trace_callback(None)
            statements.append(next(count))
    assert max(statements) == statements[0] <= 7
    assert statements[-1] <= 5
    assert len(rows_of(site.connection)) == 51


def test_an_append_is_one_query_and_one_insert(site):
    """The commonest of all entries takes no more than it must."""
    statements: list[str] = []
    with judge_of(site) as judge:
        for number in range(3):
            statements.clear()
            site.connection.set_trace_callback(statements.append)
            write_run(judge, cause(number), 7, number * 100, bytes(100))
            site.connection.set_trace_callback(None)
    assert [statement.split()[0] for statement in statements] == ["SELECT", "INSERT"]


def test_dropping_runs_forgets_one_file_only(site):
    """The data of others stays."""
    put(site, 1, 0, b"x")
    put(site, 1, 0, b"y", inode=8)
    drop_runs(site.connection, 7)
    assert list(data_runs(site.connection, 7, 0, 9)) == []
    assert list(data_runs(site.connection, 8, 0, 9)) == [(0, b"y")]


def test_an_empty_write_and_a_truncate_to_the_greatest_length_leave_no_run(site):
    """There is nothing between their ends."""
    put(site, 1, 5, b"")
    put(site, 2, FILE_BYTES_MAX, None)
    assert rows_of(site.connection) == []
