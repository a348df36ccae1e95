"""The promises, judged on what was seen from outside: pure functions that know nothing of how a site works.

The simulation and the experiments with real processes hand over the same `Observation` and get the same verdicts:

| number | says |
|---|---|
| P1 | what was answered, and what a peer acknowledged, is on disk |
| P2 | no acknowledged write is lost, no replica is ahead of its origin |
| P3 | every entry once, in order, without a hole, the same everywhere |
| P4 | equal cursors, equal trees and conflict lists |
| P5 | every entry is accounted for |
| P6 | nothing forged takes effect, and it is told |
| P7 | everything has a limit, nothing is left over |
| P8 | conflicts are told, the same everywhere, and what lost is kept |
| P9 | modes are obeyed |
| I6 | recovery finds what was durable, and refuses a log that is damaged where it matters |
| I9 | all converge within the time allowed after the last fault |
| I10 | who is gone is Offline in time, who is back Active |
| I12 | modes change no faster than the thresholds allow, and not without a cause |
| I13 | what is shorter than the thresholds changes no mode |
| I17 | stamps stay within the drift bound |
| I18 | reconnects and rebuilding do no more work than they must |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from claudefs_repl.bound_promises import check_bounds, check_stamps, check_work
from claudefs_repl.log_promises import check_durable, check_exactly_once, check_kept, check_recovery
from claudefs_repl.mode_promises import (
    check_detection,
    check_modes,
    check_no_false_death,
    check_no_flap,
    check_progress,
)
from claudefs_repl.observations import Observation
from claudefs_repl.verdict import Ruling, Verdict
from claudefs_repl.view_promises import check_accounts, check_conflicts, check_convergence, check_forgery

CHECKERS: Mapping[str, Callable[[Observation], Verdict]] = {
    "P1": check_durable,
    "P2": check_kept,
    "P3": check_exactly_once,
    "P4": check_convergence,
    "P5": check_accounts,
    "P6": check_forgery,
    "P7": check_bounds,
    "P8": check_conflicts,
    "P9": check_modes,
    "I6": check_recovery,
    "I9": check_progress,
    "I10": check_detection,
    "I12": check_no_flap,
    "I13": check_no_false_death,
    "I17": check_stamps,
    "I18": check_work,
}
"""Every promise and invariant that is judged, by its number."""


def judge(seen: Observation, numbers: Iterable[str] = CHECKERS) -> list[Verdict]:
    """The verdict on each promise, in the order of the table."""
    chosen = set(numbers)
    return [check(seen) for number, check in CHECKERS.items() if number in chosen]


def broken(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Those of promises that did not hold."""
    return [verdict for verdict in verdicts if verdict.ruling is Ruling.BROKEN]
