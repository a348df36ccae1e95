"""Promises about what is shown: convergence, sums that add up, conflicts that are the same everywhere, no forgery."""

from __future__ import annotations

from collections.abc import Mapping

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.journal import JournalId
from claudefs_repl.observations import ConflictSeen, HeldLog, Observation, ShardSums, SiteEnd
from claudefs_repl.verdict import Inquiry, Verdict

_Key = tuple[tuple[JournalId, tuple[int, ...]], ...]


def check_convergence(seen: Observation) -> Verdict:
    """P4: sites that have applied the same entries show the same tree and conflicts, at the end and at any time before."""
    inquiry = Inquiry()
    first_end: dict[_Key, tuple[str, SiteEnd]] = {}
    for name, end in seen.ends.items():
        if end.applied is None:
            continue
        other_name, other = first_end.setdefault(_key(end.applied), (name, end))
        if other is not end:
            _compare_ends(name, end, other_name, other, inquiry)
    first_digest: dict[_Key, tuple[str, int, str]] = {}
    for moment in seen.cursors:
        if moment.digest is None:
            continue
        told = first_digest.setdefault(_key(moment.applied), (moment.site, moment.time_us, moment.digest))
        if told[:2] != (moment.site, moment.time_us):
            inquiry.count("digests at equal cursors")
        if told[2] != moment.digest:
            what = f"its tree is not that of {told[0]} at {told[1] / 1e6:.6f} s, which had applied the same entries"
            inquiry.find(what, site=moment.site, time_us=moment.time_us)
    return inquiry.close("P4", "equal cursors, equal trees and conflicts")


def _key(cursors: Cursors) -> _Key:
    return tuple(sorted((journal, tuple(seqs)) for journal, seqs in cursors.items() if any(seqs)))


def _compare_ends(name: str, end: SiteEnd, other_name: str, other: SiteEnd, inquiry: Inquiry) -> None:
    path = None
    if end.tree is not None and other.tree is not None:
        inquiry.count("trees listed at two sites")
        inquiry.count("paths", len({*end.tree, *other.tree}))
        path = _first_difference(end.tree, other.tree)
        if path is not None:
            here, there = (tree.get(path, "nothing") for tree in (end.tree, other.tree))
            inquiry.find(f"{here} here, {there} at {other_name}, at equal cursors", site=name, path=path)
    if end.digest is not None and other.digest is not None:
        inquiry.count("digests of two sites")
        if end.digest != other.digest and path is None:
            inquiry.find(f"its digest is not that of {other_name} at equal cursors", site=name)
    if end.conflicts is not None and other.conflicts is not None:
        inquiry.count("conflict lists of two sites")
        ids = {each.id for each in end.conflicts} ^ {each.id for each in other.conflicts}
        if ids:
            what = f"its conflict list is not that of {other_name}: {len(ids)} differ, the first is {min(ids)}"
            inquiry.find(what, site=name)


def _first_difference(one: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    if one == other:
        return None
    return min(path for path in {*one, *other} if one.get(path) != other.get(path))


def check_accounts(seen: Observation) -> Verdict:
    """P5: no cursor passes what is durable, every entry is accounted for, what is put aside is told."""
    inquiry = Inquiry()
    for moment in seen.cursors:
        inquiry.count("cursors in the run", len(moment.applied))
        _check_order(
            moment.site, moment.applied, moment.received, "applied", "durable in the log", inquiry, moment.time_us
        )
        if moment.durable is not None:
            _check_order(moment.site, moment.durable, moment.applied, "durable", "applied", inquiry, moment.time_us)
    for name, end in seen.ends.items():
        if end.logs is not None:
            _check_end_cursors(name, end, end.logs, inquiry)
        if end.sums is not None:
            for journal, shards in end.sums.items():
                for shard, sums in enumerate(shards):
                    inquiry.count("sums of a shard")
                    log = None if end.logs is None else end.logs.get(journal, ())[shard:][:1]
                    for what in _wrong_sums(sums, log[0] if log else None):
                        inquiry.find(what, site=name, journal=journal, shard=shard)
    _check_chains(seen, inquiry)
    _check_dead_letters(seen, inquiry)
    return inquiry.close("P5", "every entry is accounted for")


def _check_order(
    name: str, lower: Cursors, upper: Cursors, low: str, high: str, inquiry: Inquiry, time_us: int | None
) -> None:
    for journal, seqs in lower.items():
        above = upper.get(journal) or (0,) * len(seqs)
        for shard, (seq, most) in enumerate(zip(seqs, above, strict=True)):
            if seq > most:
                what = f"the {low} cursor is there, but only {most} entries are {high}"
                inquiry.find(what, site=name, journal=journal, shard=shard, seq=seq, time_us=time_us)


def _check_end_cursors(
    name: str, end: SiteEnd, logs: Mapping[JournalId, tuple[HeldLog, ...]], inquiry: Inquiry
) -> None:
    tails = {journal: tuple(log.tail for log in shards) for journal, shards in logs.items()}
    if end.received is not None:
        inquiry.count("received cursors against the log", len(end.received))
        _check_order(name, end.received, tails, "received", "in the log", inquiry, None)
    if end.applied is not None:
        inquiry.count("applied cursors against the log", len(end.applied))
        _check_order(name, end.applied, tails, "applied", "in the log", inquiry, None)
        if seen_floor := {journal: tuple(log.trimmed for log in shards) for journal, shards in logs.items()}:
            _check_order(name, seen_floor, end.applied, "trimmed", "applied", inquiry, None)


def _wrong_sums(sums: ShardSums, log: HeldLog | None) -> list[str]:
    """What does not add up at one site alone."""
    wrong = []
    if log is not None and sums.durable != log.trimmed + len(log.seqs):
        wrong.append(
            f"{sums.durable} entries are counted as durable, but the log holds {len(log.seqs)} after {log.trimmed}"
        )
    if sums.folded != sums.applied:
        wrong.append(f"applied up to seq {sums.applied}, but {sums.folded} entries took effect")
    shown = sums.current + sums.lost + sums.superseded + sums.dead_letters
    if shown != sums.applied:
        wrong.append(
            f"applied up to seq {sums.applied}, but {sums.current} entries are current, {sums.lost} lost, "
            f"{sums.superseded} superseded, {sums.dead_letters} dead letters"
        )
    if min(sums.current, sums.lost, sums.superseded, sums.dead_letters) < 0:
        wrong.append("a count is below zero")
    return wrong


def _check_chains(seen: Observation, inquiry: Inquiry) -> None:
    first: dict[tuple[JournalId, int, int], tuple[str, ShardSums]] = {}
    for name, end in seen.ends.items():
        for journal, shards in (end.sums or {}).items():
            for shard, sums in enumerate(shards):
                other, theirs = first.setdefault((journal, shard, sums.applied), (name, sums))
                if theirs is not sums:
                    inquiry.count("sums at two sites")
                if theirs.chain != sums.chain:
                    what = f"other entries took effect up to seq {sums.applied} than at {other}"
                    inquiry.find(what, site=name, journal=journal, shard=shard)


def _check_dead_letters(seen: Observation, inquiry: Inquiry) -> None:
    for name, end in seen.ends.items():
        if end.dead_letters is None:
            continue
        told = len(end.dead_letters)
        inquiry.count("dead letters told", told)
        if end.sums is not None:
            counted = sum(sums.dead_letters for shards in end.sums.values() for sums in shards)
            inquiry.count("dead letters counted", counted)
            if counted != told:
                inquiry.find(f"{counted} dead letters are counted, but {told} told", site=name)
        due = seen.dead_letters_planted - seen.planted_refused
        if told < due:
            inquiry.find(f"{due} entries cannot be applied, but {told} dead letters are told", site=name)
        if told > seen.dead_letters_planted:
            letter = end.dead_letters[0]
            what = f"a dead letter that nobody planted: {letter.reason}"
            inquiry.find(what, site=name, journal=letter.journal, shard=letter.shard, seq=letter.seq)


def check_forgery(seen: Observation) -> Verdict:
    """P6: what was tampered with was told and changed nothing: logs hold what clients asked for and nothing else."""
    inquiry = Inquiry()
    for each in seen.tampering:
        inquiry.count("frames tampered with")
        from_us = each.told_from_us - seen.limits.tolerance_us
        until_us = each.told_by_us + seen.limits.tolerance_us
        if not any(
            told.site in (each.site, *each.tellers) and from_us <= told.time_us <= until_us for told in seen.rejections
        ):
            inquiry.find(f"{each.what}, and nothing was told", site=each.site, time_us=each.time_us)
    names = {site_id: name for name, site_id in seen.sites.items()}
    for name, end in seen.ends.items():
        for journal, logs in (end.logs or {}).items():
            submitted = None if seen.submitted is None else seen.submitted.get(names.get(journal.origin, ""))
            for shard, log in enumerate(logs):
                for seq in log.damaged:
                    inquiry.find(
                        "its checksum is not that of its fields", site=name, journal=journal, shard=shard, seq=seq
                    )
                if submitted is None:
                    continue
                inquiry.count("contents that a client asked for", len(log.contents))
                for seq, content in log.contents.items():
                    if content not in submitted:
                        what = "no client of its origin asked to write this content"
                        inquiry.find(what, site=name, journal=journal, shard=shard, seq=seq)
    return inquiry.close("P6", "nothing forged takes effect, all of it is told", is_exercised=bool(seen.tampering))


_Lists = dict[str, dict[str, ConflictSeen]]


def check_conflicts(seen: Observation) -> Verdict:
    """P8: every conflict is on every site's list in the same words, what lost can be fetched, and nothing else is on it."""
    inquiry = Inquiry()
    lists: _Lists = {
        name: {each.id: each for each in end.conflicts} for name, end in seen.ends.items() if end.conflicts is not None
    }
    _check_alike(lists, inquiry)
    for name, rows in lists.items():
        for row in rows.values():
            _check_loser(name, row, inquiry)
        for text in seen.peaceful:
            inquiry.count("objects that were changed one after another")
            for row in rows.values():
                if text in row.what:
                    inquiry.find(
                        f"a conflict of kind {row.kind}, though nothing was concurrent", site=name, path=row.what
                    )
        for kind, text in seen.expected_conflicts:
            inquiry.count("conflicts provoked")
            if not any(row.kind == kind and text in row.what for row in rows.values()):
                inquiry.find(f"a conflict of kind {kind} was provoked, and is not listed", site=name, path=text)
    return inquiry.close("P8", "every conflict is told, the same everywhere, and what lost is kept")


def _check_alike(lists: _Lists, inquiry: Inquiry) -> None:
    first: dict[str, tuple[str, ConflictSeen]] = {}
    for name, rows in lists.items():
        for row in rows.values():
            first.setdefault(row.id, (name, row))
    for conflict_id, (told_by, row) in first.items():
        for name, rows in lists.items():
            inquiry.count("conflicts on a list")
            mine = rows.get(conflict_id)
            if mine is None:
                what = f"does not list conflict {conflict_id} ({row.kind}), as {told_by} does"
                inquiry.find(what, site=name, path=row.what)
            elif _told(mine) != _told(row):
                what = f"conflict {conflict_id} is {_told(mine)} here, {_told(row)} at {told_by}"
                inquiry.find(what, site=name, path=row.what)


def _check_loser(name: str, row: ConflictSeen, inquiry: Inquiry) -> None:
    if row.is_content_missing:
        inquiry.find(f"what lost in conflict {row.id} ({row.kind}) is not kept", site=name, path=row.what)
    if row.content_crc32 is not None:
        inquiry.count("contents of losers fetched")
        if row.written_crc32 not in (None, row.content_crc32):
            what = f"what lost in conflict {row.id} ({row.kind}) is not what was written"
            inquiry.find(what, site=name, path=row.what)


def _told(row: ConflictSeen) -> tuple[str, ...]:
    content = "" if row.content_crc32 is None or row.is_content_missing else f"{row.content_crc32:08x}"
    return row.kind, row.what, row.loser, row.winner, content
