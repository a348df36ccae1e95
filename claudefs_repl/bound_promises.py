"""Promises about size and effort: everything has a limit, nothing is left over, clocks and reconnects cost nothing."""

from __future__ import annotations

from claudefs_repl.observations import Observation
from claudefs_repl.verdict import Inquiry, Verdict


def check_bounds(seen: Observation) -> Verdict:
    """P7: whatever was measured stayed under its limit, and nothing is left when a site has ended."""
    inquiry = Inquiry()
    for each in seen.measures:
        inquiry.count("measures")
        if each.value > each.limit:
            inquiry.find(
                f"{each.what} is {each.value:g}, of {each.limit:g} at most", site=each.site, time_us=each.time_us
            )
    if seen.leftovers is not None:
        inquiry.count("sites that ended and left nothing", len({*seen.sites} - {left.site for left in seen.leftovers}))
        for left in seen.leftovers:
            inquiry.find(f"{left.kind} {left.what} is left over", site=left.site)
    return inquiry.close("P7", "everything has a limit")


def check_stamps(seen: Observation) -> Verdict:
    """I17: no site holds a stamp further ahead of its clock than it is allowed, however clocks were set."""
    inquiry = Inquiry()
    limits = seen.limits
    most_us = max(limits.clocks_ahead_us.values(), default=0)
    for moment in seen.cursors:
        ahead_us = limits.clocks_ahead_us.get(moment.site, 0)
        latest_us = limits.epoch_us + moment.time_us + ahead_us + limits.max_clock_drift_us + limits.tolerance_us
        inquiry.count("newest stamps in the run", len(moment.newest_us))
        for journal, stamp_us in moment.newest_us.items():
            if stamp_us > latest_us:
                what = (
                    f"a stamp is {(stamp_us - latest_us) / 1e6:.3f} s beyond what the site's clock and the drift allow"
                )
                inquiry.find(what, site=moment.site, journal=journal, time_us=moment.time_us)
    for name, end in seen.ends.items():
        for journal, logs in (end.logs or {}).items():
            # A site's own stamps follow those that it applied, which are at most the drift ahead of its clock.
            ahead_us = most_us if journal == end.own else limits.clocks_ahead_us.get(name, 0)
            latest_us = limits.epoch_us + seen.ended_us + ahead_us + limits.max_clock_drift_us + limits.tolerance_us
            for shard, log in enumerate(logs):
                inquiry.count("stamps", len(log.timestamps_us))
                for seq, stamp_us in zip(log.seqs, log.timestamps_us, strict=True):
                    if stamp_us > latest_us:
                        beyond_s = (stamp_us - latest_us) / 1e6
                        what = f"its stamp is {beyond_s:.3f} s beyond what the site's clock and the drift allow"
                        inquiry.find(what, site=name, journal=journal, shard=shard, seq=seq)
                        break
    return inquiry.close("I17", "stamps stay within the drift bound", is_exercised=any(limits.clocks_ahead_us.values()))


def check_work(seen: Observation) -> Verdict:
    """I18: a reconnect sends again at most what was under way, and only who lost a disk or was cut off is made anew."""
    inquiry = Inquiry()
    for link in seen.work:
        inquiry.count("links")
        allowed = max(0, link.connections - 1) * link.window_batches
        if link.duplicate_batches > allowed:
            what = (
                f"got {link.duplicate_batches} batches of {link.sender} again; {link.connections} connections "
                f"explain {allowed}"
            )
            inquiry.find(what, site=link.receiver)
    for site in sorted({each.site for each in seen.bootstraps or ()}):
        made = [each for each in seen.bootstraps or () if each.site == site]
        lost = [loss for loss in seen.disk_losses if loss.site == site]
        inquiry.count("sites made anew", len(made))
        caused = sum(each.cause is not None for each in made)
        if len(made) - caused > len(lost):
            what = f"was made anew {len(made)} times, but lost its disk {len(lost)} times and had to be {caused} times more"
            inquiry.find(what, site=site, time_us=made[-1].time_us)
    return inquiry.close("I18", "work after a reconnect is bounded")
