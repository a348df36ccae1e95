"""Planting: a copy of the packages in a directory of its own, with one text replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.simulation.mutants.table import Mutant

ROOT = Path(__file__).parents[3]
COPIED = ("claudefs_repl", "protocol", "nodes", "tests/simulation")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


def occurrences(mutant: Mutant, root: Path = ROOT) -> int:
    """How often the text that a mutant replaces is in its file."""
    return (root / mutant.path).read_text().count(mutant.old)


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """A mutant's file as it is with the bug.

    Raises:
        ValueError: the text to replace is not there exactly once.
    """
    found = occurrences(mutant, root)
    if found != 1:
        raise ValueError(f"{mutant.name}: {mutant.path} has the text {found} times, not once:\n{mutant.old}")
    return (root / mutant.path).read_text().replace(mutant.old, mutant.new)


def plant(mutant: Mutant | None, directory: Path) -> None:
    """Copy the packages and the simulation into a directory, with a mutant's bug, or without any.

    Raises:
        ValueError: as `mutated`.
    """
    for name in COPIED:
        shutil.copytree(ROOT / name, directory / name, ignore=_LEFT_OUT, dirs_exist_ok=True)
    if mutant is not None:
        (directory / mutant.path).write_text(mutated(mutant))
