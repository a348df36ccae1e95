"""The list of mutants does not rot, and the runner tells a bug from none."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter

import pytest
from click.testing import CliRunner

from claudefs_repl.promises import CHECKERS
from tests.simulation.mutants import run
from tests.simulation.mutants.plant import ROOT, mutated, occurrences, plant
from tests.simulation.mutants.run import try_all, try_mutant
from tests.simulation.mutants.table import MUTANTS

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
SHORT_SEED = 7
"""It takes a fraction of what others do."""
TOY = '''
from types import SimpleNamespace

from claudefs_repl.clock import HybridClock

def run_seed(seed):
    """Only every third seed sets the clock back."""
    clock = HybridClock()
    stamps = [clock.tick(wall_us) for wall_us in ((10, 20, 15) if seed % 3 == 0 else (10, 20, 30))]
    rises = all(one < other for one, other in zip(stamps, stamps[1:]))
    return SimpleNamespace(violations=[] if rises else [f"P3: stamps go back: {stamps}"])
'''


def add_toy(directory):
    (directory / "toy.py").write_text(TOY)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_mutant_still_replaces_one_text_of_the_code_as_it_is(name):
    """The text to replace is there exactly once, and what replaces it is another, and Python."""
    mutant = BY_NAME[name]
    assert occurrences(mutant) == 1
    assert mutant.old != mutant.new
    ast.parse(mutated(mutant))


def test_no_mutant_is_caught_for_a_name_that_is_not_there(tmp_path):
    """What is put in uses only what its file has: a bug that ends in a NameError would be no bug of a promise."""
    for mutant in MUTANTS:
        place = tmp_path / mutant.name / mutant.path
        place.parent.mkdir(parents=True)
        place.write_text(mutated(mutant))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821,E9", str(tmp_path)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_list_is_long_enough_and_says_which_promise_notices():
    """At least 25 bugs, told apart by their names, each of a promise that is checked."""
    assert len(MUTANTS) >= 25
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    assert {mutant.promise for mutant in MUTANTS} <= set(CHECKERS)


def test_a_mutant_is_planted_in_a_copy_and_nowhere_else(tmp_path):
    """The copy has the bug, the project does not."""
    mutant = BY_NAME["clock-goes-back"]
    before = (ROOT / mutant.path).read_bytes()
    plant(mutant, tmp_path)
    assert (tmp_path / mutant.path).read_text() == mutated(mutant)
    assert (ROOT / mutant.path).read_bytes() == before
    assert (tmp_path / "protocol" / "frames.py").read_bytes() == (ROOT / "protocol" / "frames.py").read_bytes()


def test_a_bug_is_caught_by_the_first_seed_that_shows_it_and_no_bug_is_not():
    """The number of seeds is told, and the unmutated code passes all of them."""
    caught = try_mutant(BY_NAME["clock-goes-back"], seeds_max=9, module="toy", extra=add_toy)
    assert (caught.is_caught, caught.seeds) == (True, 3)
    assert "stamps go back" in caught.story
    clean = try_mutant(None, seeds_max=9, module="toy", extra=add_toy)
    assert (clean.is_caught, clean.seeds) == (False, 9)


def test_the_simulation_catches_a_bug_within_a_few_seeds():
    """An answer that comes before its sync is found in seconds, by what sites and clients show outside."""
    assert try_mutant(BY_NAME["ack-before-sync"], seeds_max=6).is_caught


def test_mutants_that_are_tried_at_the_same_time_are_told_in_their_order():
    """Each has a process of its own; whichever ends first, the table's order is kept."""
    mutants = [BY_NAME["wake-up-lost"], BY_NAME["undurable-sent"]]
    assert [catch.name for catch in try_all(mutants, 2, first=SHORT_SEED, seeds_max=1)] == [one.name for one in mutants]


def test_a_simulation_that_does_not_run_has_caught_nothing():
    """A run that raises has told of no violation: the mutant counts as a survivor, with the reason."""
    catch = try_mutant(None, seeds_max=1, module="no_such_module")
    assert not catch.is_caught
    assert "no_such_module" in catch.story


def test_a_survivor_fails_the_campaign(monkeypatch):
    """The exit status is 1 if a mutant survived, and the survivors are named."""
    monkeypatch.setattr(run, "try_mutant", _catch_all_but("tag-unchecked"))
    alone = ["--processes", "1"]
    result = CliRunner().invoke(run.main, [*alone, "--json", "--only", "tag-unchecked", "--only", "mine-wins"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["survivors"] == ["tag-unchecked"]
    assert CliRunner().invoke(run.main, [*alone, "--only", "mine-wins"]).exit_code == 0


def test_nothing_is_said_of_mutants_if_the_code_as_it_is_fails(monkeypatch):
    """What the unmutated code violates proves nothing about a mutant: the exit status is 2."""
    monkeypatch.setattr(run, "try_mutant", _catch_all_but(""))
    assert CliRunner().invoke(run.main, ["--only", "mine-wins"]).exit_code == 2


def _catch_all_but(survivor):
    def try_one(mutant, *, first, seeds_max):
        name = "unmutated" if mutant is None else mutant.name
        is_caught = name != survivor and (mutant is not None or not survivor)
        return run.Catch(name, "P1", "", seeds_max, is_caught, "found" if is_caught else "")

    return try_one
