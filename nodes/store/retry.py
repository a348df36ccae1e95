"""Retrying dead letters: what can be applied by now takes effect, as if it had never been put aside."""

from __future__ import annotations

from dataclasses import dataclass

from claudefs_repl.journal import Stamp
from nodes.store.causality import Cause, run_name
from nodes.store.dead_letters import (
    DeadLetter,
    EntryKey,
    EntryUnsound,
    keep_letter,
    read_letters,
    remove_letter,
)
from nodes.store.fold import Fold, FoldReport
from protocol.payload import PayloadInvalid

PAGE_LETTERS = 256
"""Dead letters of one transaction: at most 17 MiB of payloads, and as long as one of the applier's steps."""


@dataclass(frozen=True, slots=True)
class RetryReport:
    """What became of a page of dead letters.

    Attributes:
        applied: those that took effect and are none any more.
        left: how many of the page stay.
        upto: the last of the page, after which to go on; None if there are no more.
        fold: what folding had to tell.
    """

    applied: list[EntryKey]
    left: int
    upto: EntryKey | None
    fold: FoldReport


def retry_letters(fold: Fold, after: EntryKey | None, only: DeadLetter | None) -> RetryReport:
    """Fold a page of dead letters in, in the order of their journals, where nothing stands against it any more.

    Folding does not depend on the order of arrival but for that of one object's entries in one journal, and in that order
    they are retried. So the view is the one that would have been without the detour.

    Args:
        fold: of the open transaction.
        after: where the page before ended, None to begin.
        only: retry this one and those that may wait for it; None for all.
    """
    if only is not None and after is None:
        after = only.key._replace(seq=only.key.seq - 1)
    page = read_letters(fold.connection, after, PAGE_LETTERS)
    is_last = len(page) < PAGE_LETTERS or (only is not None and not _same_shard(page[-1], only))
    wanted = [letter for letter in page if only is None or (_same_shard(letter, only) and letter.inode == only.inode)]
    applied = [letter for letter in wanted if _retry(fold, letter)]
    last_us = max((letter.timestamp_us for letter in applied), default=0)
    fold.timestamp_us = max(fold.timestamp_us, last_us)
    fold.flush()
    return RetryReport(
        applied=[letter.key for letter in applied],
        left=len(wanted) - len(applied),
        upto=None if is_last else page[-1].key,
        fold=FoldReport(len(applied), [], last_us, fold.found_conflicts()),
    )


def _same_shard(one: DeadLetter, other: DeadLetter) -> bool:
    return one.key[:3] == other.key[:3]


def _retry(fold: Fold, letter: DeadLetter) -> bool:
    """Whether the entry takes effect now; if not, its reason is brought up to date."""
    if letter.is_unsound:
        return False
    stamp = Stamp(letter.timestamp_us, *letter.key)
    try:
        operation = fold.operation_of(stamp, letter.op, letter.inode, letter.payload)
    except PayloadInvalid as error:
        keep_letter(fold.connection, letter.key, str(error), is_unsound=isinstance(error, EntryUnsound))
        return False
    # Before it takes effect: a removal keeps a tomb for what may come yet, and this is here now.
    remove_letter(fold.connection, letter.key)
    fold.apply(Cause(stamp, stamp.pack(), letter.seen, run_name(letter.seen), is_local=False), letter.inode, operation)
    return True
