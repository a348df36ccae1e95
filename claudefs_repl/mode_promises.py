"""Promises about modes and time: modes are obeyed, changes have their cause, and the cluster comes back in time."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

from claudefs_repl.checkpoint import equal
from claudefs_repl.failover import SiteMode
from claudefs_repl.observations import Attempt, ModeSeen, Observation, Outcome
from claudefs_repl.verdict import Inquiry, Verdict

NOT_WRITABLE = "not_writable"
"""The code of a write that was refused because of a mode or a gate."""


class _Modes:
    """Which mode a site had, in one site's word, at any time."""

    def __init__(self, seen: Observation) -> None:
        self._changes: dict[tuple[str, str], list[ModeSeen]] = defaultdict(list)
        for change in sorted(seen.modes, key=lambda each: each.time_us):
            self._changes[change.site, change.about].append(change)
        self._times = {pair: [each.time_us for each in changes] for pair, changes in self._changes.items()}

    def pairs(self) -> Iterable[tuple[str, str]]:
        return self._changes

    def changes(self, site: str, about: str) -> list[ModeSeen]:
        return self._changes.get((site, about), [])

    def steps(self, site: str, about: str) -> Iterator[tuple[ModeSeen, ModeSeen, SiteMode, SiteMode, bool]]:
        """Changes from one mode to another that reports made: not by hand, and not by a start, which forgets opinions.

        The last value tells whether the mode before was a start's: it took no report, and probes may have begun earlier.
        """
        own, changes = self.changes(site, site), self.changes(site, about)
        starts_us = [change.time_us for before, change in pairwise(own) if before.mode is None]
        for before, change in pairwise(changes):
            is_forgotten = any(before.time_us < start_us <= change.time_us for start_us in starts_us)
            if before.mode and change.mode and not (before.is_forced or change.is_forced or is_forgotten):
                is_initial = before is changes[0] or before.time_us in starts_us
                yield before, change, before.mode, change.mode, is_initial

    def during(self, site: str, about: str, began_us: int, ended_us: int) -> set[SiteMode | None] | None:
        """Every mode in that time; None if the time begins before it was known."""
        times = self._times.get((site, about), [])
        first, last = bisect_right(times, began_us) - 1, bisect_right(times, ended_us)
        if first < 0:
            return None
        return {change.mode for change in self._changes[site, about][first:last]}


def check_modes(seen: Observation) -> Verdict:
    """P9: a site serves clients as its mode lets it, and begins as one that does not write yet."""
    inquiry = Inquiry()
    modes = _Modes(seen)
    is_exercised = False
    slack_us = seen.limits.tolerance_us
    for attempt in seen.attempts:
        had = modes.during(attempt.site, attempt.site, attempt.began_us - slack_us, attempt.ended_us + slack_us)
        if had is None:
            continue
        served = attempt.outcome is Outcome.ACKNOWLEDGED or bool(attempt.entries)
        able = [mode for mode in had if mode and (mode.is_readable if attempt.is_read else mode.is_writable)]
        is_exercised |= len(able) < len(had)
        if served:
            inquiry.count("reads served" if attempt.is_read else "writes acknowledged")
            if not able:
                what = f"{attempt.kind} of client {attempt.client} was served, though the site was {_names(had)}"
                inquiry.find(what, site=attempt.site, time_us=attempt.ended_us)
        elif attempt.code == NOT_WRITABLE and seen.gates is not None:
            inquiry.count("refusals")
            if len(able) == len(had) and not _is_gate_closed(seen, attempt):
                what = f"{attempt.kind} of client {attempt.client} was refused, though the site was {_names(had)}"
                inquiry.find(what, site=attempt.site, time_us=attempt.ended_us)
    for site in seen.sites:
        before: ModeSeen | None = None
        for change in modes.changes(site, site):
            if (before is None or before.mode is None) and change.mode is not None and not change.is_forced:
                inquiry.count("starts")
                if change.mode.is_writable:
                    what = f"starts as {change.mode.value}, before it can know what it lacks"
                    inquiry.find(what, site=site, time_us=change.time_us)
            before = change
    return inquiry.close("P9", "modes are obeyed", is_exercised=is_exercised)


def _names(modes: set[SiteMode | None]) -> str:
    return " and ".join(sorted(mode.value if mode else "not there" for mode in modes))


def _is_gate_closed(seen: Observation, attempt: Attempt) -> bool:
    slack_us = seen.limits.tolerance_us
    return any(
        gate.site == attempt.site
        and gate.began_us - slack_us <= attempt.ended_us
        and attempt.began_us <= gate.ended_us + slack_us
        for gate in seen.gates or ()
    )


def check_progress(seen: Observation) -> Verdict:
    """I9: after the last fault all sites hold and show the same within the time allowed."""
    inquiry = Inquiry()
    limit_us = seen.limits.converge_us
    if seen.ends or seen.converged_us is not None:
        inquiry.count("heals")
        if seen.converged_us is None:
            what = f"not converged {(seen.ended_us - seen.healed_us) / 1e6:.3f} s after all was healed"
            inquiry.find(what, time_us=seen.ended_us)
        elif seen.converged_us - seen.healed_us > limit_us:
            took_s = (seen.converged_us - seen.healed_us) / 1e6
            inquiry.find(f"took {took_s:.3f} s to converge, of {limit_us / 1e6:.3f} s", time_us=seen.converged_us)
    first_name = next(iter(seen.ends), "")
    for name, end in seen.ends.items():
        for what, ours, theirs in (
            ("received", end.received, seen.ends[first_name].received),
            ("applied", end.applied, seen.ends[first_name].applied),
        ):
            if name != first_name and ours is not None and theirs is not None:
                inquiry.count("cursors of two sites")
                if not equal(ours, theirs):
                    inquiry.find(f"has not {what} the same entries as {first_name} at the end", site=name)
        if end.received is not None and end.applied is not None and not equal(end.received, end.applied):
            inquiry.find("has not applied all that it received at the end", site=name)
    return inquiry.close("I9", "all converge in time after the faults end")


def check_detection(seen: Observation) -> Verdict:
    """I10: a peer that is gone is Offline in time in the eyes of the others, and one that is back is Active in time."""
    inquiry = Inquiry()
    modes, limits = _Modes(seen), seen.limits
    pairs = [(site, peer) for site, peer in modes.pairs() if site != peer]
    for site, peer in pairs:
        for began_us, ended_us in _outages(seen, site, peer):
            due_us = began_us + limits.detect_us + limits.tolerance_us
            if ended_us < due_us or _is_hurt(seen, site, began_us - limits.detect_us, due_us):
                continue
            had = modes.during(site, peer, began_us, due_us)
            if had is None or any(change.is_forced for change in modes.changes(site, peer)):
                continue
            inquiry.count("peers gone for long enough")
            if SiteMode.OFFLINE not in had:
                what = f"has not taken {peer} for Offline {limits.detect_us / 1e6:.3f} s after it was gone"
                inquiry.find(what, site=site, time_us=due_us)
    for site, peer in pairs:
        own_changes = [change for name in (site, peer) for change in modes.changes(name, name)]
        since_us = max([seen.healed_us, *(change.time_us for change in own_changes)])
        due_us = min(since_us + limits.recover_us + limits.tolerance_us, seen.ended_us)
        had = modes.during(site, peer, due_us, seen.ended_us)
        own = modes.during(peer, peer, due_us, seen.ended_us)
        if had is None or own != {SiteMode.ACTIVE_READ_WRITE}:
            continue
        # A run that ends before the time is over can still tell that a peer is back.
        if due_us == seen.ended_us and had != own:
            continue
        if any(change.is_forced for change in modes.changes(site, peer)):
            continue
        inquiry.count("peers that are back")
        if had != {SiteMode.ACTIVE_READ_WRITE}:
            what = f"takes {peer} for {_names(had)} {limits.recover_us / 1e6:.3f} s after all was healed"
            inquiry.find(what, site=site, time_us=due_us)
    return inquiry.close("I10", "who is gone is Offline in time, who is back is Active in time")


def _outages(seen: Observation, site: str, peer: str) -> Iterator[tuple[int, int]]:
    """When no probe of a peer by a site can have succeeded: a cut, or the peer's process not there."""
    for fault in seen.faults:
        if (site, peer) in fault.cuts:
            yield fault.began_us, fault.ended_us
    gone_us: int | None = None
    for change in sorted(seen.modes, key=lambda each: each.time_us):
        if change.site != peer or change.about != peer:
            continue
        if change.mode is None:
            gone_us = change.time_us if gone_us is None else gone_us
        elif gone_us is not None:
            yield gone_us, change.time_us
            gone_us = None
    if gone_us is not None:
        yield gone_us, seen.ended_us


def _is_hurt(seen: Observation, site: str, began_us: int, ended_us: int) -> bool:
    """Whether a site itself was not there or not itself in a time."""
    if any(site in fault.sites and fault.began_us <= ended_us and began_us <= fault.ended_us for fault in seen.faults):
        return True
    own = _Modes(seen).during(site, site, began_us, ended_us)
    return own is None or None in own


def check_no_flap(seen: Observation) -> Verdict:
    """I12: no mode changes while nothing is done to the cluster, and no faster than its thresholds allow."""
    inquiry = Inquiry()
    modes, limits = _Modes(seen), seen.limits
    for site, about in modes.pairs():
        for before, change, was, became, is_initial in modes.steps(site, about):
            inquiry.count("changes of a mode")
            is_down = became.rank < was.rank
            checks = (limits.failure_threshold if is_down else limits.recovery_threshold) - 1
            least_us = checks * limits.check_interval_us - limits.tolerance_us
            if change.time_us - before.time_us < least_us and not is_initial:
                after_s = (change.time_us - before.time_us) / 1e6
                what = (
                    f"{about} became {became.value} {after_s:.3f} s after it had become {was.value}; "
                    f"that takes {checks + 1} more checks"
                )
                inquiry.find(what, site=site, time_us=change.time_us)
            if is_down and site != about:
                _check_cause(seen, change, inquiry)
    return inquiry.close("I12", "modes change no faster than the thresholds allow, and not without a cause")


def check_no_false_death(seen: Observation) -> Verdict:
    """I13: what lasts less than the checks of a threshold changes no mode."""
    inquiry = Inquiry()
    modes, limits = _Modes(seen), seen.limits
    least_us = (limits.failure_threshold - 1) * limits.check_interval_us - limits.probe_timeout_us - limits.tolerance_us
    for site, about in modes.pairs():
        if site == about:
            continue
        for began_us, ended_us in _disturbances(seen, site, about):
            if ended_us - began_us >= least_us:
                continue
            inquiry.count("disturbances that are too short to matter")
            until_us = ended_us + limits.check_interval_us + limits.probe_timeout_us
            for _, change, was, became, _ in modes.steps(site, about):
                if became.rank < was.rank and began_us <= change.time_us <= until_us:
                    lasted_s = (ended_us - began_us) / 1e6
                    what = f"{about} became {became.value}, after a disturbance of {lasted_s:.3f} s only"
                    inquiry.find(what, site=site, time_us=change.time_us)
    return inquiry.close("I13", "a short pause or delay is not taken for a death")


def _check_cause(seen: Observation, change: ModeSeen, inquiry: Inquiry) -> None:
    """A fall in somebody's eyes follows something that can have made probes fail."""
    limits = seen.limits
    # A dialler that backs off goes on reporting failures until it has dialled again.
    window_us = limits.recover_us + limits.tolerance_us
    inquiry.count("falls with a cause")
    for began_us, ended_us in _disturbances(seen, change.site, change.about):
        if began_us - limits.tolerance_us <= change.time_us <= ended_us + window_us:
            return
    mode = change.mode.value if change.mode else ""
    what = f"{change.about} became {mode}, though nothing had been done to either for {window_us / 1e6:.3f} s"
    inquiry.find(what, site=change.site, time_us=change.time_us)


def _disturbances(seen: Observation, site: str, about: str) -> list[tuple[int, int]]:
    """Everything that can have made probes between two sites fail, joined where it touches."""
    limits = seen.limits
    found = [
        (fault.began_us, fault.ended_us)
        for fault in seen.faults
        if fault.disturbs_probes and ({site, about} & {*fault.sites} or (site, about) in fault.cuts)
    ]
    # Nobody is there before its first word.
    gone = dict.fromkeys((site, about), 0)
    for change in sorted(seen.modes, key=lambda each: each.time_us):
        if change.site != change.about or change.site not in (site, about):
            continue
        if change.mode in (None, SiteMode.OFFLINE):
            gone.setdefault(change.site, change.time_us)
        elif change.site in gone:
            found.append((gone.pop(change.site), change.time_us))
    found += [(since_us, seen.ended_us) for since_us in gone.values()]
    joined: list[tuple[int, int]] = []
    for began_us, ended_us in sorted(found):
        if joined and began_us <= joined[-1][1] + limits.check_interval_us + limits.probe_timeout_us:
            joined[-1] = (joined[-1][0], max(joined[-1][1], ended_us))
        else:
            joined.append((began_us, ended_us))
    return joined
