"""The checkers of the promises: each passes the good run, and finds each planted violation where it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.journal import Op
from claudefs_repl.observations import (
    Acknowledged,
    Attempt,
    Bootstrap,
    CursorsSeen,
    DiskLoss,
    Fault,
    HeldLog,
    Leftover,
    Measure,
    ModeSeen,
    Observation,
    Outcome,
)
from claudefs_repl.promises import CHECKERS, broken, judge
from claudefs_repl.verdict import FINDINGS_MAX, Ruling
from tests.claudefs_repl.good_run import (
    ACTIVE,
    ALPHA,
    ATTEMPTS,
    BETA,
    CURSORS,
    DEGRADED,
    GAMMA,
    GOOD,
    LOGS,
    OFFLINE,
    SITES,
    STANDBY,
    TAILS,
    S,
    moment,
    with_end,
    with_log,
    with_modes,
    with_sums,
    wrote,
)

CONFLICT = GOOD.ends["alpha"].conflicts[0]


def with_attempt(**fields):
    attempt = Attempt("beta", 9, 15 * S, 15 * S + 10, "write", Outcome.ACKNOWLEDGED)
    return replace(GOOD, attempts=[*ATTEMPTS, replace(attempt, **fields)])


def with_cursors(*moments):
    return replace(GOOD, cursors=[*CURSORS, *moments])


COLUMNS = ("seqs", "timestamps_us", "inodes", "ops", "crcs")


def without_last(log):
    return {column: getattr(log, column)[:-1] for column in COLUMNS}


PLANTED = {
    # name: (promise, the run, what the first finding must name)
    "acknowledged entry lost at its own site by a loss of power": (
        "P1",
        with_log("beta", BETA, **without_last(LOGS[BETA])),
        {"site": "beta", "journal": BETA, "shard": 0, "seq": 2},
    ),
    "peer has less than it acknowledged": (
        "P1",
        with_cursors(moment(67, "beta", BETA, {ALPHA: 3, BETA: 2})),
        {"site": "beta", "journal": ALPHA, "seq": 4, "time_us": 67 * S},
    ),
    "acknowledged entry missing at another site": (
        "P2",
        with_log("gamma", ALPHA, seqs=[1, 2], timestamps_us=[10, 20], inodes=[0x101] * 2, ops=[0, 3], crcs=[11, 12]),
        {"site": "gamma", "journal": ALPHA, "seq": 3},
    ),
    "another entry in an acknowledged place": (
        "P2",
        with_log("gamma", ALPHA, inodes=[0x101, 0x101, 0x999, 0x102]),
        {"site": "gamma", "journal": ALPHA, "seq": 3},
    ),
    "acknowledged content altered": (
        "P2",
        with_log("gamma", BETA, contents={1: 0xBAD}),
        {"site": "gamma", "journal": BETA, "seq": 1},
    ),
    "log trimmed before it was applied": (
        "P2",
        replace(
            GOOD,
            ends={
                **GOOD.ends,
                "gamma": replace(
                    GOOD.ends["gamma"],
                    logs={**GOOD.ends["gamma"].logs, ALPHA: (HeldLog(3, [4], [40], [0x102], [5], [14]),)},
                    applied={**TAILS, ALPHA: (1,)},
                ),
            },
        ),
        {"site": "gamma", "journal": ALPHA, "seq": 2},
    ),
    "one seq acknowledged for two entries": (
        "P2",
        with_attempt(site="alpha", entries=(Acknowledged(ALPHA, 0, 1, 0x777, Op.MKDIR),)),
        {"site": "alpha", "journal": ALPHA, "seq": 1},
    ),
    "replica ahead of its origin": (
        "P2",
        with_cursors(moment(3, "beta", BETA, {ALPHA: 3}), moment(3.1, "alpha", ALPHA, {ALPHA: 2})),
        {"site": "alpha", "journal": ALPHA, "seq": 3, "time_us": round(3.1 * S)},
    ),
    "acknowledged content not shown": (
        "P2",
        with_end("beta", tree={"/a": "file 5 bytes"}),
        {"site": "beta", "path": "/d"},
    ),
    "a hole": (
        "P3",
        with_log("beta", ALPHA, seqs=[1, 2, 4, 5]),
        {"site": "beta", "journal": ALPHA, "shard": 0, "seq": 3},
    ),
    "an entry twice": ("P3", with_log("beta", ALPHA, seqs=[1, 2, 2, 3]), {"site": "beta", "journal": ALPHA, "seq": 3}),
    "an object made twice": (
        "P3",
        with_log("alpha", ALPHA, inodes=[0x101, 0x101, 0x101, 0x102]),
        {"site": "alpha", "journal": ALPHA, "seq": 3},
    ),
    "stamps go back": (
        "P3",
        with_log("alpha", ALPHA, timestamps_us=[10, 20, 20, 40]),
        {"site": "alpha", "journal": ALPHA, "seq": 3},
    ),
    "copies differ": (
        "P3",
        with_log("gamma", BETA, crcs=[21, 99]),
        {"site": "gamma", "journal": BETA, "seq": 2},
    ),
    "trees differ": (
        "P4",
        with_end("gamma", tree={"/a": "file 5 bytes", "/d": "file"}),
        {"site": "gamma", "path": "/d"},
    ),
    "digests differ": ("P4", with_end("beta", digest="other"), {"site": "beta"}),
    "conflict lists differ": ("P4", with_end("beta", conflicts=()), {"site": "beta"}),
    "trees differ in the middle of the run": (
        "P4",
        with_cursors(moment(4, "gamma", GAMMA, {ALPHA: 2, BETA: 1}, digest="other")),
        {"site": "gamma", "time_us": 4 * S},
    ),
    "applied beyond what is durable": (
        "P5",
        with_cursors(moment(4, "beta", BETA, {ALPHA: 2}, applied={ALPHA: (3,)})),
        {"site": "beta", "journal": ALPHA, "seq": 3, "time_us": 4 * S},
    ),
    "durable beyond what is applied": (
        "P5",
        with_cursors(moment(4, "beta", BETA, {ALPHA: 2}, durable={ALPHA: (3,)})),
        {"site": "beta", "journal": ALPHA, "seq": 3},
    ),
    "received beyond the log": ("P5", with_end("beta", received={**TAILS, BETA: (3,)}), {"site": "beta", "seq": 3}),
    "not all took effect": ("P5", with_sums("beta", ALPHA, folded=3), {"site": "beta", "journal": ALPHA, "shard": 0}),
    "an entry unaccounted for": ("P5", with_sums("gamma", ALPHA, current=2), {"site": "gamma", "journal": ALPHA}),
    "log and count differ": ("P5", with_sums("gamma", BETA, durable=1), {"site": "gamma", "journal": BETA}),
    "other entries took effect": ("P5", with_sums("gamma", BETA, chain=0), {"site": "gamma", "journal": BETA}),
    "a dead letter dropped": (
        "P5",
        replace(
            with_sums("gamma", ALPHA, dead_letters=0, superseded=1),
            ends={
                **GOOD.ends,
                "gamma": replace(
                    with_sums("gamma", ALPHA, dead_letters=0, superseded=1).ends["gamma"], dead_letters=()
                ),
            },
        ),
        {"site": "gamma"},
    ),
    "a dead letter that nobody planted": (
        "P5",
        replace(GOOD, dead_letters_planted=0),
        {"site": "alpha", "journal": ALPHA, "seq": 4},
    ),
    "forged frame not told": ("P6", replace(GOOD, rejections=()), {"site": "beta", "time_us": 40 * S}),
    "forged entry taken": (
        "P6",
        replace(GOOD, submitted={**GOOD.submitted, "beta": frozenset()}),
        {"site": "alpha", "journal": BETA, "seq": 1},
    ),
    "damaged entry": ("P6", with_log("beta", ALPHA, damaged=(2,)), {"site": "beta", "journal": ALPHA, "seq": 2}),
    "limit passed": (
        "P7",
        replace(GOOD, measures=(Measure(7 * S, "beta", "queue_batches", 65, 64),)),
        {"site": "beta", "time_us": 7 * S},
    ),
    "task left over": ("P7", replace(GOOD, leftovers=(Leftover("gamma", "task", "sender"),)), {"site": "gamma"}),
    "conflict not told at one site": ("P8", with_end("gamma", conflicts=()), {"site": "gamma", "path": "/a bytes 0-5"}),
    "another winner at one site": (
        "P8",
        with_end("gamma", conflicts=(replace(CONFLICT, winner="alpha 0:2", loser="beta 0:1"),)),
        {"site": "gamma", "path": "/a bytes 0-5"},
    ),
    "content of the loser not kept": (
        "P8",
        with_end("beta", conflicts=(replace(CONFLICT, content_crc32=None, is_content_missing=True),)),
        {"site": "beta", "path": "/a bytes 0-5"},
    ),
    "content of the loser is another": (
        "P8",
        with_end("beta", conflicts=(replace(CONFLICT, content_crc32=0xBAD),)),
        {"site": "beta", "path": "/a bytes 0-5"},
    ),
    "content of the loser is another everywhere": (
        "P8",
        with_end("beta", conflicts=(replace(CONFLICT, written_crc32=0xBAD),)),
        {"site": "beta", "path": "/a bytes 0-5"},
    ),
    "conflict where nothing was concurrent": (
        "P8",
        replace(GOOD, peaceful=("/a bytes",)),
        {"site": "gamma", "path": "/a bytes 0-5"},
    ),
    "provoked conflict at no site": (
        "P8",
        replace(GOOD, expected_conflicts=(("move", "/d"),)),
        {"site": "alpha", "path": "/d"},
    ),
    "write acknowledged by a standby": (
        "P9",
        with_attempt(began_us=21 * S, ended_us=21 * S + 10),
        {"site": "beta", "time_us": 21 * S + 10},
    ),
    "write acknowledged by nobody": ("P9", with_attempt(), {"site": "beta", "time_us": 15 * S + 10}),
    "read served by a site that is Offline": (
        "P9",
        replace(
            with_modes(ModeSeen(80 * S, "gamma", "gamma", OFFLINE)),
            attempts=[Attempt("gamma", 1, 82 * S, 82 * S, "stat", Outcome.ACKNOWLEDGED, is_read=True)],
        ),
        {"site": "gamma", "time_us": 82 * S},
    ),
    "start as Active": (
        "P9",
        with_modes(ModeSeen(75 * S, "beta", "beta", None), ModeSeen(76 * S, "beta", "beta", ACTIVE)),
        {"site": "beta", "time_us": 76 * S},
    ),
    "write refused by a site that is Active": (
        "P9",
        with_attempt(site="alpha", outcome=Outcome.REFUSED, code="not_writable"),
        {"site": "alpha", "time_us": 15 * S + 10},
    ),
    "log ends earlier after a crash": (
        "I6",
        with_cursors(moment(20.5, "alpha", ALPHA, {ALPHA: 1, BETA: 1})),
        {"site": "alpha", "journal": ALPHA, "seq": 2, "time_us": round(20.5 * S)},
    ),
    "damaged log opened": (
        "I6",
        replace(GOOD, log_damage=(replace(GOOD.log_damage[0], is_refused=False),)),
        {"site": "gamma", "time_us": 62 * S},
    ),
    "never converged": ("I9", replace(GOOD, converged_us=None), {"time_us": 90 * S}),
    "converged late": ("I9", replace(GOOD, converged_us=81 * S), {"time_us": 81 * S}),
    "received but never applied": ("I9", with_end("beta", applied={**TAILS, ALPHA: (3,)}), {"site": "beta"}),
    "death not noticed": (
        "I10",
        replace(GOOD, modes=[m for m in GOOD.modes if not (m.site == "alpha" and m.mode is OFFLINE)]),
        {"site": "alpha", "time_us": 17_600_000},
    ),
    "return not noticed": (
        "I10",
        replace(
            GOOD, modes=[m for m in GOOD.modes if not (m.site == "alpha" and m.about == "beta" and m.time_us > 24 * S)]
        ),
        {"site": "alpha"},
    ),
    "counter not reset": (
        "I12",
        replace(
            GOOD,
            modes=[
                replace(m, time_us=14 * S) if (m.site, m.about, m.mode) == ("gamma", "beta", OFFLINE) else m
                for m in GOOD.modes
            ],
        ),
        {"site": "gamma", "time_us": 14 * S},
    ),
    "fall without a cause": (
        "I12",
        with_modes(ModeSeen(45 * S, "alpha", "gamma", DEGRADED), ModeSeen(49 * S, "alpha", "gamma", ACTIVE)),
        {"site": "alpha", "time_us": 45 * S},
    ),
    "short pause taken for a death": (
        "I13",
        with_modes(ModeSeen(51 * S, "alpha", "beta", DEGRADED), ModeSeen(54 * S, "alpha", "beta", ACTIVE)),
        {"site": "alpha", "time_us": 51 * S},
    ),
    "stamp beyond the drift": (
        "I17",
        with_log("alpha", BETA, timestamps_us=[15, 90 * S + 301 * S]),
        {"site": "alpha", "journal": BETA, "seq": 2},
    ),
    "stamp beyond the drift in the run": (
        "I17",
        with_cursors(moment(4, "alpha", ALPHA, {BETA: 1}, newest_us={BETA: 305 * S})),
        {"site": "alpha", "journal": BETA, "time_us": 4 * S},
    ),
    "everything sent again": (
        "I18",
        replace(GOOD, work=(replace(GOOD.work[0], duplicate_batches=65),)),
        {"site": "beta"},
    ),
    "made anew for nothing": (
        "I18",
        replace(GOOD, bootstraps=(*GOOD.bootstraps, Bootstrap(80 * S, "beta"))),
        {"site": "beta", "time_us": 80 * S},
    ),
}


@pytest.mark.parametrize("number", CHECKERS)
def test_every_promise_holds_in_the_good_run_and_is_exercised(number):
    """A checker finds nothing in a run without a fault of ours, and says that it looked."""
    (verdict,) = judge(GOOD, [number])
    assert verdict.ruling is Ruling.HELD, str(verdict)
    assert verdict.promise == number


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_violation_is_found_where_it_is(name):
    """A violation is found by the checker of its promise, which names the place."""
    number, seen, where = PLANTED[name]
    (verdict,) = judge(seen, [number])
    assert verdict.ruling is Ruling.BROKEN, str(verdict)
    stories = [{field: getattr(finding, field) for field in where} for finding in verdict.findings]
    assert where in stories, str(verdict)


def test_every_checker_has_a_violation_that_it_finds():
    """No checker is there that was never seen to fail."""
    assert {number for number, _, _ in PLANTED.values()} == set(CHECKERS)


@pytest.mark.parametrize("number", CHECKERS)
def test_what_checked_nothing_was_not_exercised(number):
    """An empty observation breaks no promise and holds none."""
    (verdict,) = judge(Observation(sites=SITES), [number])
    assert verdict.ruling is Ruling.NOT_EXERCISED, str(verdict)
    assert "not exercised" in str(verdict)


@pytest.mark.parametrize(
    ("number", "seen"),
    [
        ("P1", replace(GOOD, faults=(), cursors=[])),
        ("P6", replace(GOOD, tampering=())),
        ("P9", replace(GOOD, attempts=[wrote("alpha", ALPHA, 3, 3)])),
        ("I6", replace(GOOD, faults=(), log_damage=())),
        ("I17", replace(GOOD, limits=replace(GOOD.limits, clocks_ahead_us={}))),
    ],
)
def test_a_promise_is_not_exercised_by_a_run_without_its_fault(number, seen):
    """Without a loss of power, a forgery, a mode that forbids something, nothing was shown."""
    assert judge(seen, [number])[0].ruling is Ruling.NOT_EXERCISED


def test_what_a_wiped_disk_held_alone_is_excused_and_nothing_else():
    """An entry that others held when the disk was wiped must be there all the same."""
    assert not broken(judge(GOOD, ["P2"]))
    held = replace(GOOD.disk_losses[0], others_held={**GOOD.disk_losses[0].others_held, GAMMA: (2,)})
    (verdict,) = judge(replace(GOOD, disk_losses=(held,)), ["P2"])
    assert {(finding.journal, finding.seq) for finding in verdict.findings} == {(GAMMA, 2)}


def test_what_a_second_lost_disk_held_alone_is_excused_as_well():
    """What one site alone had when its origin's disk was lost goes with that site's disk, if nobody had it by then."""
    attempt = wrote("gamma", GAMMA, 1, 57)
    gone = replace(attempt, entries=(replace(attempt.entries[0], seq=2, op=Op.UNLINK),))
    first = DiskLoss(60 * S, "gamma", others_held={GAMMA: (2,)}, held={GAMMA: (2,)})
    second = DiskLoss(65 * S, "beta", others_held={GAMMA: (1,)}, held={GAMMA: (2,)})
    seen = replace(GOOD, attempts=[gone])
    assert not broken(judge(replace(seen, disk_losses=(first, second)), ["P2"]))
    for kept in (replace(second, others_held={GAMMA: (2,)}), replace(second, held={GAMMA: (1,)})):
        assert broken(judge(replace(seen, disk_losses=(first, kept)), ["P2"]))


def test_an_entry_that_its_origin_wrote_anew_is_not_lost():
    """What a later journal of the same site says again counts as kept."""
    entry = replace(wrote("gamma", GAMMA, 1, 57).entries[0], seq=2, inode=0x302, op=Op.CREATE)
    attempt = replace(wrote("gamma", GAMMA, 1, 57), entries=(entry,))
    seen = replace(GOOD, attempts=[attempt], disk_losses=())
    assert not broken(judge(seen, ["P2"]))


def test_what_others_held_until_they_lost_it_may_be_written_anew():
    """What the others had when the origin's disk was lost is its to write again once their disks are lost as well."""
    entry = replace(wrote("gamma", GAMMA, 1, 57).entries[0], seq=2, inode=0x302, op=Op.CREATE)
    attempt = replace(wrote("gamma", GAMMA, 1, 57), entries=(entry,))
    origins = DiskLoss(60 * S, "gamma", others_held={GAMMA: (2,)}, held={GAMMA: (2,)})
    assert broken(judge(replace(GOOD, attempts=[attempt], disk_losses=(origins,)), ["P2"]))
    others = DiskLoss(65 * S, "beta", others_held={GAMMA: (2,)}, held={GAMMA: (2,)})
    assert not broken(judge(replace(GOOD, attempts=[attempt], disk_losses=(origins, others)), ["P2"]))


def test_a_seq_may_be_given_again_when_its_entry_is_gone_with_the_disk():
    """A site restored from an old copy cannot know what it had acknowledged since, if nobody else had it."""
    attempt = wrote("gamma", GAMMA, 1, 57)
    gone = replace(attempt, entries=(replace(attempt.entries[0], inode=0x999),))
    again = replace(attempt, began_us=65 * S, ended_us=65 * S)
    alone = DiskLoss(60 * S, "gamma", others_held={}, held={GAMMA: (1,)})
    seen = replace(GOOD, attempts=[gone, again], disk_losses=(alone,))
    assert not broken(judge(seen, ["P2"]))
    assert broken(judge(replace(seen, disk_losses=(replace(alone, others_held={GAMMA: (1,)}),)), ["P2"]))


def test_of_two_pasts_of_a_seq_the_later_one_may_be_written_anew():
    """A site restored from an old copy that wrote alone gave a seq again that others hold: neither entry is lost."""
    attempt = wrote("gamma", GAMMA, 1, 57)
    restored = DiskLoss(56 * S, "gamma", others_held={GAMMA: (1,)}, held={GAMMA: (1,)})
    again, nowhere = ({"inode": 0x302, "op": Op.CREATE}, {"inode": 0x999, "op": Op.UNLINK})
    for changes, is_kept in ((again, True), (nowhere, False)):
        other = replace(attempt, entries=(replace(attempt.entries[0], content_crc32=None, **changes),))
        seen = replace(GOOD, attempts=[wrote("gamma", GAMMA, 1, 50), other], disk_losses=(restored,))
        assert bool(broken(judge(seen, ["P2"]))) is not is_kept
        assert broken(judge(replace(seen, disk_losses=()), ["P2"]))


def test_what_was_written_anew_and_trimmed_at_one_site_is_found_at_another():
    """A site that has trimmed the later journal has had it: what that said is read where it is still held."""
    entry = replace(wrote("gamma", GAMMA, 1, 57).entries[0], seq=2, inode=0x302, op=Op.CREATE)
    attempt = replace(wrote("gamma", GAMMA, 1, 57), entries=(entry,))
    later = GOOD.ends["gamma"].own
    log = GOOD.ends["gamma"].logs[later][0]
    empty = dict.fromkeys(("seqs", "timestamps_us", "inodes", "ops", "crcs"), ())
    seen = replace(with_log("beta", later, trimmed=log.tail, **empty), attempts=[attempt], disk_losses=())
    assert not broken(judge(seen, ["P2"]))


def test_what_nobody_has_any_more_of_a_later_journal_may_be_what_was_written_anew():
    """What all have trimmed, or have with its content left out; as long as one has all of it, it is looked for there."""
    written = replace(wrote("gamma", GAMMA, 1, 57).entries[0], seq=2, inode=0x999, op=Op.WRITE, content_crc32=5)
    removed = replace(written, op=Op.UNLINK, content_crc32=None)
    later = GOOD.ends["gamma"].own
    trimmed = {"trimmed": 1, **{column: getattr(GOOD.ends["gamma"].logs[later][0], column)[1:] for column in COLUMNS}}
    emptied = {"ops": (Op.WRITE,) * len(GOOD.ends["gamma"].logs[later][0].ops), "contents": {}}
    for entry, changes, is_hidden in (
        (removed, trimmed, True),
        (written, trimmed, True),
        (written, emptied, True),
        (removed, emptied, False),
    ):
        attempt = replace(wrote("gamma", GAMMA, 1, 57), entries=(entry,))
        ends = {
            name: replace(end, logs={**end.logs, later: [replace(log, **changes) for log in end.logs[later]]})
            for name, end in GOOD.ends.items()
        }
        seen = replace(GOOD, ends=ends, attempts=[attempt], disk_losses=())
        assert bool(broken(judge(seen, ["P2"]))) is not is_hidden
        assert broken(judge(replace(seen, ends={**ends, "alpha": GOOD.ends["alpha"]}), ["P2"]))


@pytest.mark.parametrize(("planted", "ruling"), [(2, Ruling.HELD), (3, Ruling.BROKEN)])
def test_an_entry_that_was_told_as_not_journaled_again_is_no_dead_letter(planted, ruling):
    """A site that was made anew has told of it; all others are dead letters everywhere."""
    assert judge(replace(GOOD, dead_letters_planted=planted, planted_refused=1), ["P5"])[0].ruling is ruling


def test_a_verdict_keeps_the_first_findings_and_counts_all():
    """A broken run does not fill the memory with its findings."""
    lost = tuple(Acknowledged(ALPHA, 0, seq, 0x900, Op.WRITE) for seq in range(5, 405))
    seen = replace(GOOD, attempts=[Attempt("alpha", 1, 0, 1, "write", Outcome.ACKNOWLEDGED, entries=lost)])
    (verdict,) = judge(seen, ["P2"])
    assert verdict.found == 3 * 400
    assert len(verdict.findings) == FINDINGS_MAX


def test_a_finding_tells_the_whole_story_in_one_line():
    """Site, journal, shard, seq and time are in it."""
    (verdict,) = judge(with_log("beta", BETA, **without_last(LOGS[BETA])), ["P1"])
    assert str(verdict.findings[0]) == (
        f"beta: journal {BETA} shard 0 seq 2 MKDIR of inode 201 was acknowledged to client 1 of beta, but is not there; "
        "the log ends at 1 (at 2.501000 s)"
    )


@given(st.lists(st.tuples(st.sampled_from(["alpha", "beta"]), st.integers(0, 5)), max_size=12))
def test_a_replica_is_ahead_exactly_when_a_later_look_at_its_origin_shows_less(looks):
    """For every order of looks: ahead means that the origin, at that time or later, had less than a replica had shown."""
    moments = [
        moment(at, site, ALPHA if site == "alpha" else BETA, {ALPHA: seq}) for at, (site, seq) in enumerate(looks, 1)
    ]
    (verdict,) = judge(Observation(sites=SITES, cursors=moments, ended_us=99 * S), ["P2"])
    is_ahead = any(
        site == "beta" and other == "alpha" and seq > later
        for at, (site, seq) in enumerate(looks)
        for other, later in looks[at + 1 :]
    )
    assert (verdict.ruling is Ruling.BROKEN) is is_ahead


@given(st.lists(st.integers(1, 6), max_size=6), st.integers(0, 3))
def test_a_log_is_dense_exactly_when_its_seqs_follow_what_was_trimmed(seqs, trimmed):
    """Any other list of seqs is a hole, an entry twice or out of order."""
    stamps = list(range(1, len(seqs) + 1))
    log = HeldLog(trimmed, seqs, stamps, [7] * len(seqs), [Op.WRITE] * len(seqs), [0] * len(seqs))
    end = replace(GOOD.ends["alpha"], logs={ALPHA: (log,)})
    (verdict,) = judge(Observation(sites=SITES, ends={"alpha": end}), ["P3"])
    assert (verdict.ruling is Ruling.BROKEN) is (seqs != list(range(trimmed + 1, trimmed + 1 + len(seqs))))


def test_a_write_under_way_while_the_mode_changed_is_no_violation():
    """Only a write whose whole time, and the tolerance, was without a writable mode counts."""
    late = with_attempt(site="beta", began_us=round(22.9 * S), ended_us=round(22.95 * S))
    assert not broken(judge(late, ["P9"]))
    early = with_attempt(site="beta", began_us=round(22.5 * S), ended_us=round(22.6 * S))
    assert broken(judge(early, ["P9"]))


def test_an_observer_that_was_hurt_itself_need_not_notice():
    """A site that was paused while its peer was away owes no opinion."""
    seen = PLANTED["death not noticed"][1]
    paused = Fault("pause", 12 * S, 14 * S, ("alpha",))
    assert not broken(judge(replace(seen, faults=(*seen.faults, paused)), ["I10"]))


def test_an_operators_hand_is_no_flap():
    """A mode that was set by hand needs no cause and no thresholds."""
    forced = [
        ModeSeen(45 * S, "alpha", "alpha", STANDBY, is_forced=True),
        ModeSeen(46 * S, "alpha", "alpha", ACTIVE, True),
    ]
    assert not broken(judge(with_modes(*forced), ["I12"]))


def test_an_opinion_that_a_restart_forgot_is_no_step():
    """A site begins with the best opinion of its peers, however it thought of them before it was killed."""
    killed = [ModeSeen(round(13.3 * S), "gamma", "gamma", None), ModeSeen(round(13.5 * S), "gamma", "gamma", STANDBY)]
    fresh = [ModeSeen(round(13.5 * S), "gamma", peer, ACTIVE) for peer in ("alpha", "beta")]
    assert not broken(judge(with_modes(*killed, *fresh), ["I12"]))
    assert broken(judge(with_modes(*fresh), ["I12"]))


def test_cursors_of_sites_with_no_journal_yet_compare_as_zeros():
    """A journal that is absent is the same as one of which nothing has passed."""
    seen = with_cursors(CursorsSeen(4 * S, "beta", BETA, {ALPHA: (2,), BETA: (1,), GAMMA: (0,)}, {}, digest="d9"))
    assert not broken(judge(seen))
