"""What a transfer did: filled in as it goes on, shown while it runs and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from claudefs_repl.error import OperationRefused
from nodes.commands.tree import Kind, Problem, describe


@dataclass(slots=True)
class TransferReport:
    """What a transfer did so far. Written by the transfer, read by whoever shows it.

    Attributes:
        files: contents carried, or attributes brought up to date.
        dirs: directories made or brought up to date.
        symlinks: symbolic links made or brought up to date.
        links: further names given to files.
        file_bytes: the size of what was carried, holes included, as far as it has come.
        skipped: objects that were there and equal.
        skipped_bytes: the size of the files among them.
        problems: what was not carried over; the rest was.
        special: special files, which no site carries.
    """

    files: int = 0
    dirs: int = 0
    symlinks: int = 0
    links: int = 0
    file_bytes: int = 0
    skipped: int = 0
    skipped_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    special: list[Problem] = field(default_factory=list)

    @property
    def objects(self) -> int:
        """Everything dealt with, whether carried or skipped."""
        return self.files + self.dirs + self.symlinks + self.links + self.skipped + len(self.special)

    @property
    def complete(self) -> bool:
        """Whether the copy has everything that the original had."""
        return not self.problems and not self.special

    def add(self, kind: Kind) -> None:
        """Count an object that was made or brought up to date."""
        if kind is Kind.FILE:
            self.files += 1
        elif kind is Kind.DIR:
            self.dirs += 1
        else:
            self.symlinks += 1

    @contextmanager
    def content(self, size: int) -> Iterator[Callable[[int], None]]:
        """Yield what to call with the bytes of each part of a file that has arrived; the holes are counted at the end.

        If the file is not carried after all, none of it is counted.
        """
        counted = 0

        def count(length: int) -> None:
            nonlocal counted
            counted += length
            self.file_bytes += length

        try:
            yield count
        except BaseException:
            count(-counted)
            raise
        count(size - counted)

    def skip(self, size: int) -> None:
        """Count an object that was there and equal."""
        self.skipped += 1
        self.skipped_bytes += size

    def problem(self, path: bytes, reason: str) -> None:
        """Note that an object was not carried over, or not in full."""
        self.problems.append(Problem(path, reason))

    def refuse(self, path: bytes, error: OperationRefused | OSError) -> None:
        """Note that an object was not carried over because of an error."""
        self.problem(path, describe(error) if isinstance(error, OSError) else str(error))
