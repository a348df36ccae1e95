"""A small run in which every promise held and was exercised, to plant violations in.

Three sites, one shard, a few seconds: a kill of beta that is long enough to be noticed, a partition between alpha and
gamma, a forged frame, a wiped disk at gamma, two conflicting writes, a dead letter.
"""

from __future__ import annotations

from dataclasses import replace

from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import Incarnation, JournalId, Op, SiteId
from claudefs_repl.observations import (
    Acknowledged,
    Attempt,
    Bootstrap,
    ConflictSeen,
    CursorsSeen,
    DeadLetter,
    DiskLoss,
    Fault,
    GateClosed,
    HeldLog,
    Limits,
    LinkWork,
    LogDamage,
    Measure,
    ModeSeen,
    Observation,
    Outcome,
    Rejection,
    ShardSums,
    SiteEnd,
    Tampering,
)

S = 1_000_000
SITES = {"alpha": SiteId(1), "beta": SiteId(2), "gamma": SiteId(3)}
ALPHA = JournalId(SITES["alpha"], Incarnation(0xA1))
BETA = JournalId(SITES["beta"], Incarnation(0xB1))
GAMMA = JournalId(SITES["gamma"], Incarnation(0xC1))
GAMMA_AGAIN = JournalId(SITES["gamma"], Incarnation(0xC2))
OWN = {"alpha": ALPHA, "beta": BETA, "gamma": GAMMA_AGAIN}
ACTIVE, DEGRADED = SiteMode.ACTIVE_READ_WRITE, SiteMode.DEGRADED_ACCEPT_WRITES
STANDBY, OFFLINE = SiteMode.STANDBY_READ_ONLY, SiteMode.OFFLINE

LOGS = {
    ALPHA: HeldLog(
        trimmed=0,
        seqs=[1, 2, 3, 4],
        timestamps_us=[10, 20, 30, 40],
        inodes=[0x101, 0x101, 0x102, 0x102],
        ops=[Op.CREATE, Op.WRITE, Op.CREATE, Op.SET_ATTR],
        crcs=[11, 12, 13, 14],
        contents={2: 0xC0},
    ),
    BETA: HeldLog(0, [1, 2], [15, 25], [0x101, 0x201], [Op.WRITE, Op.MKDIR], [21, 22], {1: 0xC1}),
    GAMMA: HeldLog(0, [1], [18], [0x301], [Op.SYMLINK], [31]),
    GAMMA_AGAIN: HeldLog(0, [1], [50], [0x302], [Op.CREATE], [41]),
}
TAILS = {journal: (log.tail,) for journal, log in LOGS.items()}


def end_of(site: str) -> SiteEnd:
    sums = {
        journal: (
            ShardSums(
                durable=log.tail,
                applied=log.tail,
                folded=log.tail,
                chain=sum(log.crcs),
                current=log.tail - (journal == ALPHA),
                lost=0,
                superseded=0,
                dead_letters=int(journal == ALPHA),
            ),
        )
        for journal, log in LOGS.items()
    }
    return SiteEnd(
        own=OWN[site],
        logs={journal: (log,) for journal, log in LOGS.items()},
        received=TAILS,
        applied=TAILS,
        durable=TAILS,
        digest="d1",
        tree={"/a": "file 5 bytes", "/d": "directory", "/l": "symlink"},
        conflicts=(ConflictSeen("00f1", "content", "/a bytes 0-5", "alpha 0:2", "beta 0:1", 0xC0),),
        sums=sums,
        dead_letters=(DeadLetter(ALPHA, 0, 4, "unknown version"),),
    )


def wrote(site: str, journal: JournalId, seq: int, at_s: float) -> Attempt:
    log = LOGS[journal]
    at = seq - 1
    entry = Acknowledged(journal, 0, seq, log.inodes[at], Op(log.ops[at]), log.contents.get(seq))
    began_us = round(at_s * S)
    return Attempt(site, 1, began_us, began_us + 1000, "write", Outcome.ACKNOWLEDGED, entries=(entry,))


ATTEMPTS = [
    wrote("alpha", ALPHA, 1, 1),
    wrote("beta", BETA, 1, 1.5),
    wrote("gamma", GAMMA, 1, 1.8),
    wrote("alpha", ALPHA, 2, 2),
    wrote("beta", BETA, 2, 2.5),
    wrote("alpha", ALPHA, 3, 3),
    # Nobody but gamma ever held it: the disk on which it was is wiped at second 60.
    Attempt(
        "gamma",
        1,
        58 * S,
        58 * S + 10,
        "write",
        Outcome.ACKNOWLEDGED,
        entries=(Acknowledged(GAMMA, 0, 2, 0x3FF, Op.CREATE),),
    ),
    Attempt("beta", 2, 21 * S, 21 * S + 10, "write", Outcome.REFUSED, "not_writable"),
    Attempt("beta", 2, 21 * S, 21 * S + 10, "list", Outcome.ACKNOWLEDGED, is_read=True),
    Attempt("alpha", 2, 5 * S, 5 * S + 10, "write", Outcome.REFUSED, "not_writable"),
    wrote("gamma", GAMMA_AGAIN, 1, 70),
]


def moment(at_s: float, site: str, own: JournalId, cursors: dict, **fields) -> CursorsSeen:
    held = {journal: (seq,) for journal, seq in cursors.items()}
    fields.setdefault("applied", held)
    return CursorsSeen(time_us=round(at_s * S), site=site, own=own, received=held, **fields)


CURSORS = [
    moment(2.2, "alpha", ALPHA, {ALPHA: 2, BETA: 1}, acked={"beta": (1,), "gamma": (0,)}, digest="d0"),
    moment(2.3, "beta", BETA, {ALPHA: 2, BETA: 1}, acked={"alpha": (1,)}, digest="d0"),
    moment(57, "gamma", GAMMA, {GAMMA: 1, ALPHA: 3}),
    moment(59, "gamma", GAMMA, {GAMMA: 2, ALPHA: 4}, durable={GAMMA: (1,)}),
    moment(65, "gamma", GAMMA_AGAIN, {ALPHA: 1}),
    moment(66, "alpha", ALPHA, {ALPHA: 4, BETA: 2, GAMMA: 1}, acked={"beta": (4,), "gamma": (1,)}),
]


def modes() -> list[ModeSeen]:
    found = []
    for site in SITES:
        found += [ModeSeen(0, site, site, STANDBY), ModeSeen(S, site, site, ACTIVE)]
        found += [ModeSeen(0, site, peer, ACTIVE) for peer in SITES if peer != site]
    # beta is killed at 10 s and comes back at 20 s; checks come every second, three make a step.
    found += [ModeSeen(10 * S, "beta", "beta", None), ModeSeen(20 * S, "beta", "beta", STANDBY)]
    found.append(ModeSeen(23 * S, "beta", "beta", ACTIVE))
    found += [ModeSeen(20 * S, "beta", peer, ACTIVE) for peer in ("alpha", "gamma")]
    for site in ("alpha", "gamma"):
        for at_s, mode in ((13, DEGRADED), (16, OFFLINE), (22.5, STANDBY), (24.5, ACTIVE)):
            found.append(ModeSeen(round(at_s * S), site, "beta", mode))
    # gamma's disk is wiped at 60 s.
    found += [ModeSeen(60 * S, "gamma", "gamma", None), ModeSeen(61 * S, "gamma", "gamma", STANDBY)]
    found.append(ModeSeen(63 * S, "gamma", "gamma", ACTIVE))
    return sorted(found, key=lambda each: each.time_us)


GOOD = Observation(
    sites=SITES,
    began_us=0,
    healed_us=70 * S,
    converged_us=71 * S,
    ended_us=90 * S,
    limits=Limits(
        check_interval_us=S,
        failure_threshold=3,
        recovery_threshold=2,
        probe_timeout_us=S // 2,
        redial_us=S,
        catch_up_us=S,
        converge_us=10 * S,
        clocks_ahead_us={"beta": 3600 * S},
    ),
    ends={site: end_of(site) for site in SITES},
    attempts=ATTEMPTS,
    submitted={"alpha": frozenset({0xC0}), "beta": frozenset({0xC1}), "gamma": frozenset()},
    cursors=CURSORS,
    modes=modes(),
    gates=(GateClosed("alpha", "disk full", 4 * S, 6 * S),),
    measures=(Measure(S, "alpha", "send_window_bytes", 5.0, 8.0),),
    leftovers=(),
    rejections=(Rejection(40 * S + 1000, "beta", "bad_frame"),),
    work=(LinkWork("alpha", "beta", 2, 3, 64),),
    bootstraps=(Bootstrap(61 * S, "gamma"),),
    faults=(
        Fault("kill", 10 * S, 20 * S, ("beta",), ends_process=True, is_power_loss=True),
        Fault("pause", 50 * S, 50 * S + S // 2, ("beta",)),
        Fault("wipe", 60 * S, 61 * S, ("gamma",), ends_process=True),
    ),
    disk_losses=(
        DiskLoss(60 * S, "gamma", {ALPHA: (4,), BETA: (2,), GAMMA: (1,)}, {ALPHA: (4,), BETA: (2,), GAMMA: (2,)}),
    ),
    tampering=(Tampering(40 * S, "beta", "a bit of a batch was turned", told_from_us=35 * S, told_by_us=42 * S),),
    log_damage=(LogDamage(62 * S, "gamma", "a bit of seq 1 was turned", is_refused=True),),
    expected_tree={"/d": "directory"},
    expected_conflicts=(("content", "/a"),),
    dead_letters_planted=1,
)


def with_end(site: str, **fields) -> Observation:
    """The good run, but one site ends otherwise."""
    return replace(GOOD, ends={**GOOD.ends, site: replace(GOOD.ends[site], **fields)})


def with_log(site: str, journal: JournalId, **fields) -> Observation:
    """The good run, but one log of one site has other columns at the end."""
    logs = GOOD.ends[site].logs
    return with_end(site, logs={**logs, journal: (replace(LOGS[journal], **fields),)})


def with_sums(site: str, journal: JournalId, **fields) -> Observation:
    """The good run, but one site counts otherwise."""
    sums = GOOD.ends[site].sums
    return with_end(site, sums={**sums, journal: (replace(sums[journal][0], **fields),)})


def with_modes(*changes: ModeSeen) -> Observation:
    """The good run with further changes of modes."""
    return replace(GOOD, modes=[*GOOD.modes, *changes])
