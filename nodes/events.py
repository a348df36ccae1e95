"""The event log: one JSON object per line, with stable names; an interface for programs and, rendered, for people.

Every line has `time_us` and `time` (UTC), `site`, `event`, `level`; then the event's own fields. Numbers have their
unit in their name. `EVENTS` is the list of names: whatever is not in it cannot be logged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

from nodes.seams import WallClock

LOG_BYTES_MAX = 64 << 20
"""A log that reaches this size is renamed to `events.jsonl.1`, in the place of the one before it: two files at most."""


@dataclass(frozen=True, slots=True)
class EventKind:
    """What an event means: its level (info, warning, error) and its fields, where `field?` may be missing."""

    level: str
    meaning: str
    fields: str = ""


EVENTS: Mapping[str, EventKind] = {
    "site_started": EventKind("info", "the process begins", "pid address port data_dir"),
    "journal_created": EventKind("info", "a site's own journal begins", "journal"),
    "journal_recovered": EventKind("info", "a log was read and synced", "journal entries bytes segments torn_bytes"),
    "torn_tail_cut": EventKind("warning", "an append that a crash cut short was removed", "journal torn_bytes"),
    "replayed": EventKind("info", "entries that the view lacked were folded from the own log", "entries duration_ms"),
    "view_rebuilt": EventKind("info", "the view was made anew from a snapshot and the logs", "entries duration_ms"),
    "site_ready": EventKind("info", "clients and peers are served", "mode"),
    "past_unknown": EventKind(
        "warning",
        "the data directory was empty, its disk may be lost: no client writes until all peers have told",
        "detail",
    ),
    "past_known": EventKind("info", "what peers held of the site's past is here, or there is none", "had_past"),
    "catch_up_started": EventKind("info", "the site looks for what its peers have more", "all_peers_reached"),
    "caught_up": EventKind("info", "what peers told at first contact is applied here", "duration_ms"),
    "site_stopping": EventKind("info", "a signal came; no new work is taken", "reason"),
    "site_stopped": EventKind("info", "everything is on disk and closed", "undelivered_entries"),
    "site_failed": EventKind("error", "the process ends because it cannot go on", "reason"),
    "conduit_connected": EventKind(
        "info", "an authenticated stream to (out) or from (in) a peer is up", "peer direction lag_entries?"
    ),
    "conduit_closed": EventKind("warning", "it went down", "peer direction detail"),
    "conduit_unreachable": EventKind("warning", "a peer cannot be reached; told once for each outage", "peer detail"),
    "conduit_refused": EventKind("error", "a peer refused this site's connection", "peer code detail"),
    "connection_refused": EventKind("warning", "this site refused so many connections", "source code detail count"),
    "descriptors_low": EventKind(
        "error", "newcomers are closed, because few file descriptors are left", "source detail count"
    ),
    "link_stalled": EventKind("warning", "a link is up but nothing moves", "peer lag_entries"),
    "batch_rejected": EventKind("error", "a frame or batch was wrong; nothing was applied", "peer code detail"),
    "gap_refused": EventKind("warning", "a batch did not follow what is here", "peer journal shard wanted_seq got_seq"),
    "duplicate_dropped": EventKind("info", "a batch that is here already came again", "peer journal shard last_seq"),
    "clock_drift_refused": EventKind(
        "error", "a stamp is too far ahead of the wall clock", "peer journal beyond_limit_s"
    ),
    "stamps_refused": EventKind(
        "error", "a peer takes nothing more of this site: its stamps are too far ahead", "peer detail"
    ),
    "stamps_accepted": EventKind("info", "it does again", "peer"),
    "clock_out_of_bounds": EventKind("error", "the clock disagrees with most peers: no client writes", "reason"),
    "clock_in_bounds": EventKind("info", "it agrees again"),
    "clock_drift_over": EventKind("info", "a peer's stamps are no longer too far ahead", "peer"),
    "bootstrap_started": EventKind("info", "the site is being made anew from a peer's snapshot", "peer journal"),
    "entries_lost": EventKind(
        "error", "peers were told of them, and nobody holds them any more", "journal shard first_seq last_seq"
    ),
    "entry_not_journaled_again": EventKind(
        "warning", "an entry that no peer had no longer fits the tree; a file keeps it", "journal shard seq reason"
    ),
    "bootstrapped": EventKind(
        "info", "the site is made anew, with a new journal", "peer journal fetched_bytes journaled_again refused"
    ),
    "bootstrap_needed": EventKind(
        "error", "a peer no longer holds what this site lacks: no client writes", "peer detail"
    ),
    "journal_diverged": EventKind("error", "a peer holds other entries of this journal than its site", "peer detail"),
    "peer_ahead_of_origin": EventKind(
        "error", "a peer has or was told of more of this journal than its site", "peer detail"
    ),
    "peer_needs_bootstrap": EventKind("error", "a peer is behind what the log still holds", "peer detail"),
    "peer_cut_off": EventKind("error", "nothing is kept for a peer any more", "peer log_bytes limit_bytes"),
    "reloaded": EventKind("info", "limits, identity tables and keys were read again", "changed restart_needed"),
    "unblocked": EventKind("info", "the administrator forgave a site or an address", "what"),
    "mode_changed": EventKind("info", "this site's own mode changed", "kind mode reason"),
    "peer_mode_changed": EventKind("info", "this site's opinion of a peer changed", "peer kind mode reason"),
    "conflict_found": EventKind(
        "warning", "a change lost to a concurrent one", "id kind inode what loser_site_id winner_site_id rule"
    ),
    "conflicts_found": EventKind(
        "warning", "so many more conflicts came at once, listed by `claudefs-repl conflicts list`", "count kinds"
    ),
    "conflict_content_given_up": EventKind(
        "error",
        "the content that lost is not kept here any more, because there is too much of it",
        "id kind inode content_bytes limit_bytes",
    ),
    "conflict_command_failed": EventKind(
        "error", "the command of [conflicts] was not told of conflicts, or did not end well", "reason conflicts"
    ),
    "dead_letter": EventKind("error", "an entry cannot be applied; it is kept aside", "journal shard seq reason"),
    "dead_letters_applied": EventKind("info", "entries that had been kept aside took effect", "entries left"),
    "client_refused": EventKind("warning", "a client's connection was closed", "reason"),
    "reclaimed": EventKind("info", "nameless files that their maker gave up were removed", "files"),
    "disk_full": EventKind("error", "no room: writes are refused until there is", "detail"),
    "disk_recovered": EventKind("info", "there is room again"),
    "snapshot_taken": EventKind("info", "a local snapshot of the view is on disk", "name duration_ms"),
    "log_trimmed": EventKind("info", "segments that nobody needs were removed", "journal bytes floor"),
}


class EventFile:
    """Appends lines to a file and keeps its size bounded. Owned by one site.

    The file is opened for each line: events are rare, and nothing is held that a rotation or a removed directory could
    leave pointing at the wrong file.
    """

    def __init__(self, path: Path, *, bytes_max: int = LOG_BYTES_MAX) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._bytes_max = bytes_max

    def append(self, line: bytes) -> None:
        """Write one line with its newline. A disk that has no room loses log lines, never the site."""
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(line)
                is_full = file.tell() >= self._bytes_max
            if is_full:
                self._path.replace(f"{self._path}.1")
        except OSError:
            return


class _Sink:
    """Where structlog's rendered line goes; it has a method for each level because structlog calls it by the level."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.msg = write
        self.debug = self.info = self.warning = self.warn = self.error = write
        self.critical = self.exception = self.log = write


def make_logger_onto(sink: Callable[[str], None], site: str, wall_clock: WallClock) -> FilteringBoundLogger:
    """A logger whose lines, without their newlines, go to a function; see `make_logger`."""

    def complete(_: object, __: str, event: MutableMapping[str, Any]) -> str:
        name = event.pop("event")
        assert name in EVENTS, f"{name!r} is not in the table of events"
        now_us = wall_clock.now_us()
        line = {"time_us": now_us, "time": utc_text(now_us), "site": site, "event": name, "level": EVENTS[name].level}
        event.pop("exc_info", None)
        line.update((key, value) for key, value in event.items() if key not in line)
        return json.dumps(line, ensure_ascii=True, default=_plain)

    logger = structlog.wrap_logger(
        _Sink(sink),
        processors=[complete],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        context_class=dict,
        cache_logger_on_first_use=False,
    )
    return cast("FilteringBoundLogger", logger)


def make_logger(
    path: Path,
    site: str,
    wall_clock: WallClock,
    *,
    echo: TextIO | None = None,
    bytes_max: int = LOG_BYTES_MAX,
) -> FilteringBoundLogger:
    """A logger of one site's events: `log.info("conduit_connected", peer="beta", direction="out")`.

    The level comes from `EVENTS`, whichever method is called. `echo` gets the rendering for people as well.
    """
    file = EventFile(path, bytes_max=bytes_max)
    fixed = site_colours([]) if echo is None or not echo.isatty() else None

    def write(line: str) -> None:
        file.append(line.encode() + b"\n")
        if echo is not None:
            event = json.loads(line)
            colours = site_colours([event["site"]]) if fixed is None else fixed
            print(render_event(event, colours), file=echo, flush=True)

    return make_logger_onto(write, site, wall_clock)


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


def utc_text(time_us: int) -> str:
    """A time as ISO 8601 in UTC with microseconds."""
    seconds, micros = divmod(time_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"


_SITE_COLOURS = ("36", "35", "33", "32", "34", "96", "95", "93", "92", "94")
_LEVEL_COLOURS = {"warning": "33", "error": "1;31"}


def site_colours(sites: Iterable[str]) -> dict[str, str]:
    """An ANSI colour for each site, in the order given; an empty mapping renders without colours."""
    return {site: _SITE_COLOURS[i % len(_SITE_COLOURS)] for i, site in enumerate(sites)}


def render_event(event: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    """One event as a line for people. Whatever could steer a terminal is escaped."""
    site, name, level = (str(event.get(key, "?")) for key in ("site", "event", "level"))
    clock = _printable(str(event.get("time", ""))[11:23])
    own = ("time_us", "time", "site", "event", "level")
    details = " ".join(f"{_printable(key)}={_shown(value)}" for key, value in event.items() if key not in own)
    label, word = f"{_printable(site):<8}", f"{_printable(name):<20}"
    if colours:
        label = f"\x1b[{colours.get(site, '37')}m{label}\x1b[0m"
        word = f"\x1b[{_LEVEL_COLOURS.get(level, '0')}m{word}\x1b[0m"
        clock = f"\x1b[2m{clock}\x1b[0m"
    elif level != "info":
        word = f"{word.rstrip()} ({_printable(level)})"
    return f"{clock} {label} {word} {details}".rstrip()


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if not text or " " in text or not text.isprintable() else text


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
