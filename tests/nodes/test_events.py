from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.event_reader import LogMerger, LogTail, merge_logs
from nodes.events import EVENTS, make_logger, render_event, site_colours, utc_text


class ClockAt:
    def __init__(self, now_us: int = 1_700_000_000_123_456) -> None:
        self.time_us = now_us

    def now_us(self) -> int:
        self.time_us += 1
        return self.time_us


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def put(path: Path, *times: int) -> None:
    with path.open("a") as file:
        for time_us in times:
            file.write(json.dumps({"time_us": time_us, "site": path.stem, "event": "site_ready"}) + "\n")


def times(events: Any) -> list[int]:
    return [event["time_us"] for event in events]


def test_an_event_is_one_line_of_json(tmp_path: Path) -> None:
    """Each line has time, site, event and level first, then its own fields and what was bound."""
    log = make_logger(tmp_path / "d/events.jsonl", "alpha", ClockAt())
    log.bind(peer="beta").info("conduit_connected", direction="out", lag_entries=3)
    (line,) = (tmp_path / "d/events.jsonl").read_text().splitlines()
    assert line == (
        '{"time_us": 1700000000123457, "time": "2023-11-14T22:13:20.123457Z", "site": "alpha", '
        '"event": "conduit_connected", "level": "info", "peer": "beta", "direction": "out", "lag_entries": 3}'
    )


def test_the_level_is_that_of_the_table(tmp_path: Path) -> None:
    """Whichever method is called, an event always has the same level."""
    log = make_logger(tmp_path / "events.jsonl", "alpha", ClockAt())
    for write in (log.debug, log.info, log.warning, log.error, log.exception):
        write("disk_full")
    assert {line["level"] for line in lines_of(tmp_path / "events.jsonl")} == {EVENTS["disk_full"].level}


def test_an_event_that_is_not_in_the_table_is_a_bug(tmp_path: Path) -> None:
    """Names are stable because there are no others."""
    with pytest.raises(AssertionError, match="disk_fll"):
        make_logger(tmp_path / "events.jsonl", "alpha", ClockAt()).info("disk_fll")


def test_fields_of_an_event_cannot_pass_for_its_head(tmp_path: Path) -> None:
    """Site, time and level are the log's, whatever a caller hands in."""
    make_logger(tmp_path / "events.jsonl", "alpha", ClockAt()).info("site_ready", site="beta", level="x", time_us=0)
    (line,) = lines_of(tmp_path / "events.jsonl")
    assert (line["site"], line["level"]) == ("alpha", EVENTS["site_ready"].level)
    assert line["time_us"] > 0


def test_values_that_json_lacks_are_told_as_text(tmp_path: Path) -> None:
    """Bytes, paths and other objects are logged, never an error."""
    make_logger(tmp_path / "events.jsonl", "alpha", ClockAt()).info("site_ready", mode=b"a\xff", recovery_ms=tmp_path)
    (line,) = lines_of(tmp_path / "events.jsonl")
    assert (line["mode"], line["recovery_ms"]) == ("a\\xff", str(tmp_path))


def test_a_log_keeps_two_files_at_most(tmp_path: Path) -> None:
    """A full log is renamed in the place of the one before it, and no line is cut."""
    path = tmp_path / "events.jsonl"
    log = make_logger(path, "alpha", ClockAt(), bytes_max=1000)
    for number in range(50):
        log.info("site_ready", mode=number)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["events.jsonl", "events.jsonl.1"]
    kept = [event["mode"] for event in merge_logs([path])]
    assert kept == list(range(50))[-len(kept) :]
    assert len(kept) >= 10
    assert path.stat().st_size < 1200


def test_a_disk_without_room_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    """A log that cannot be written does not end the site."""
    log = make_logger(tmp_path / "d/events.jsonl", "alpha", ClockAt())
    (tmp_path / "d/events.jsonl").mkdir()
    log.info("site_ready")


def test_an_echo_is_for_people(tmp_path: Path) -> None:
    """The echo has the same events, rendered; a stream that is no terminal gets no colours."""
    echo = io.StringIO()
    make_logger(tmp_path / "events.jsonl", "alpha", ClockAt(), echo=echo).error("disk_full", free_bytes=7)
    assert echo.getvalue() == "22:13:20.123 alpha    disk_full (error) free_bytes=7\n"


@given(st.dictionaries(st.text(max_size=10), st.text() | st.integers() | st.none()), st.booleans())
def test_no_field_can_steer_a_terminal(fields: dict[str, Any], coloured: bool) -> None:
    """A rendered event is one printable line, whatever a peer or a file name put into it."""
    colours = site_colours(["alpha"]) if coloured else {}
    event = {"time": utc_text(0), "site": "alpha", "event": "site_ready", "level": "info", **fields}
    line = render_event(event, colours)
    for code in ("\x1b[36m", "\x1b[0m", "\x1b[2m", "\x1b[37m", "\x1b[33m", "\x1b[1;31m"):
        line = line.replace(code, "") if coloured else line
    assert line.isprintable()


def test_logs_merge_in_the_order_of_time(tmp_path: Path) -> None:
    """Several sites' logs, with what was rotated away, are one."""
    put(tmp_path / "a.1", 1, 4)
    put(tmp_path / "a", 6, 9)
    put(tmp_path / "b", 2, 5, 10)
    assert times(merge_logs([tmp_path / "a", tmp_path / "b", tmp_path / "none"])) == [1, 2, 4, 5, 6, 9, 10]


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    """A torn or foreign line hides no other."""
    path = tmp_path / "a"
    put(path, 1)
    with path.open("ab") as file:
        file.write(b'{"time_us": \n\xff\xfe\n[]\n{"time_us": "x"}\n' + b"[" * 100_000 + b"\n")
    put(path, 2)
    assert times(merge_logs([path])) == [1, 2]
    tail = LogTail(path)
    assert times(tail.poll()) == [1, 2]
    tail.close()


def test_a_tail_gives_what_comes_and_waits_for_whole_lines(tmp_path: Path) -> None:
    """A line that is half written comes when it is whole."""
    path = tmp_path / "a"
    put(path, 1)
    tail = LogTail(path, from_start=False)
    assert tail.poll() == []
    with path.open("a") as file:
        file.write('{"time_us": 2')
        file.flush()
        assert tail.poll() == []
        file.write("}\n")
    assert times(tail.poll()) == [2]
    tail.close()


def test_a_tail_follows_a_rotation(tmp_path: Path) -> None:
    """Lines at the end of the old file and at the start of the new one are each given once."""
    path = tmp_path / "a"
    put(path, 1)
    tail = LogTail(path)
    assert times(tail.poll()) == [1]
    put(path, 2)
    path.rename(tmp_path / "a.1")
    assert times(tail.poll()) == [2]
    put(path, 3)
    assert times(tail.poll()) == [3]
    put(path, 4)
    assert times(tail.poll()) == [4]
    tail.close()


def test_a_tail_waits_for_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    """A site that never ran has no log; its first event is not missed."""
    tail = LogTail(tmp_path / "a", from_start=False)
    assert tail.poll() == []
    put(tmp_path / "a", 1)
    assert times(tail.poll()) == [1]
    tail.close()


def test_a_merger_holds_back_what_could_be_overtaken(tmp_path: Path) -> None:
    """An event later than the cut comes with a later poll, in order with what was written meanwhile."""
    merger = LogMerger([tmp_path / "a", tmp_path / "b"])
    put(tmp_path / "a", 1, 8)
    assert times(merger.poll(5)) == [1]
    put(tmp_path / "b", 7)
    assert times(merger.poll(9)) == [7, 8]
    put(tmp_path / "a", 12)
    assert times(merger.poll()) == [12]
    merger.close()


def test_history_and_what_follows_meet_exactly(tmp_path: Path) -> None:
    """Reading what was there up to a merger's start, and then from the merger, gives each event once."""
    put(tmp_path / "a", 1, 2)
    merger = LogMerger([tmp_path / "a"], from_start=False)
    put(tmp_path / "a", 3)
    assert times(merge_logs([tmp_path / "a"], merger.offsets)) == [1, 2]
    assert times(merger.poll()) == [3]
    merger.close()
