"""Reads event logs: what is there, lazily, and what comes, as it is written; several sites' logs as one."""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO


def merge_logs(paths: Iterable[Path], until: Mapping[Path, int] | None = None) -> Iterator[dict[str, Any]]:
    """The events of some logs, with what was rotated away, in the order of time; never more than a line of each in memory.

    Args:
        paths: the sites' logs.
        until: where to stop in a log, for who reads on from there with a `LogMerger`.
    """
    stops = until or {}
    one_by_one = (
        chain(_events_of(path.with_name(f"{path.name}.1"), None), _events_of(path, stops.get(path))) for path in paths
    )
    return heapq.merge(*one_by_one, key=lambda event: event["time_us"])


def _events_of(path: Path, stop: int | None) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            at = 0
            for line in file:
                if stop is not None and at >= stop:
                    return
                at += len(line)
                event = _parse(line)
                if event is not None:
                    yield event
    except FileNotFoundError:
        return


class LogTail:
    """Reads the events of one log as they are written, across a rotation. Owned by one reader.

    Attributes:
        offset: where in the file it began.
    """

    def __init__(self, path: Path, *, from_start: bool = True) -> None:
        self._path = path
        self._file = self._reopen()
        self._partial = b""
        self.offset = 0
        if self._file is not None and not from_start:
            self.offset = self._file.seek(0, os.SEEK_END)

    def _reopen(self) -> BinaryIO | None:
        try:
            return self._path.open("rb")
        except OSError:
            return None

    def poll(self) -> list[dict[str, Any]]:
        """Events that were written since the last call; what is not an event line is skipped."""
        if self._file is None:
            self._file = self._reopen()
        if self._file is None:
            return []
        lines = self._read_lines(self._file)
        if self._was_rotated(self._file):
            lines += self._read_lines(self._file)
            self._file.close()
            self._partial = b""
            self._file = self._reopen()
            if self._file is not None:
                lines += self._read_lines(self._file)
        return [event for event in map(_parse, lines) if event is not None]

    def _read_lines(self, file: BinaryIO) -> list[bytes]:
        *lines, self._partial = (self._partial + file.read()).split(b"\n")
        return lines

    def _was_rotated(self, file: BinaryIO) -> bool:
        """Whether the path names another file by now; not while it names none, as the next line will make one."""
        try:
            now = self._path.stat()
        except OSError:
            return False
        opened = os.fstat(file.fileno())
        return (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino)

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("time_us"), int) else None


class LogMerger:
    """Several sites' logs as one, in time order.

    A line may reach its file a moment after the time that it tells, so a poll gives out only what is older than
    `cut_us` and keeps the rest for the next one.
    """

    def __init__(self, paths: Iterable[Path], *, from_start: bool = True) -> None:
        self._tails = {path: LogTail(path, from_start=from_start) for path in paths}
        self._held: list[dict[str, Any]] = []

    @property
    def offsets(self) -> dict[Path, int]:
        """Where in its file each log's next event will be read, until the first poll."""
        return {path: tail.offset for path, tail in self._tails.items()}

    def poll(self, cut_us: int | None = None) -> list[dict[str, Any]]:
        """New events up to a time, all that there are if it is None."""
        for tail in self._tails.values():
            self._held += tail.poll()
        self._held.sort(key=lambda event: event["time_us"])
        if cut_us is None:
            ready, self._held = self._held, []
        else:
            ready = [event for event in self._held if event["time_us"] <= cut_us]
            self._held = self._held[len(ready) :]
        return ready

    def close(self) -> None:
        """Release the files."""
        for tail in self._tails.values():
            tail.close()
