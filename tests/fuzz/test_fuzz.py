"""Every kept input and every past crash again, and the fuzzer itself: it finds what is planted, and the same twice."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.fuzz.engine import CORPUS, ROOT, Campaign, Mutator, Target, Tracer, distil, file_name, judge
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_kept_inputs_and_past_crashes_keep_what_their_target_promises(name):
    """No error but the declared ones, no memory beyond the limit, no more steps than the input's length allows."""
    target, tracer = TARGETS[name], Tracer()
    for place, data in {**{f"seed {n}": seed for n, seed in enumerate(target.seeds())}, **target.kept()}.items():
        outcome = judge(target, data, tracer)
        assert outcome.fault is None, f"{place} ({len(data)} bytes): {outcome.fault.story}"


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_well_formed_input_is_taken(name):
    """The first seed of each target passes without an error: what is fuzzed is the decoder, not its front door."""
    TARGETS[name].run(TARGETS[name].seeds()[0])


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_some_mutants_of_each_target_keep_it_too(name):
    """A handful of runs from a fixed seed, as `make fuzz` makes millions of them."""
    campaign = Campaign(TARGETS[name], seed=5)
    campaign.fuzz(lambda runs: runs < 40)
    assert not campaign.faults, campaign.faults


def test_a_corpus_belongs_to_a_target():
    """No input lies where nobody runs it."""
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)


PLANTED = """
def run(data):
    if data[:1] == b"C":
        if data[1:2] == b"F":
            if data[2:3] == b"S":
                raise KeyError(data)

def branches(data):
    for byte in data[:4]:
        if byte & 1:
            byte >>= 1
        if byte & 2:
            byte >>= 1
        if byte > 30:
            byte -= 30

def slow(data):
    for start in range(len(data)):
        for at in range(start):
            data[at]

def greedy(data):
    return [0] * (int.from_bytes(data[:2], "big") << 4)

def endless(data):
    while b"!" in data:
        pass
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module with a fault of each kind, watched as this project's code is."""
    path = tmp_path / "planted.py"
    path.write_text(PLANTED)
    functions = {}
    exec(compile(PLANTED, str(path), "exec"), functions)
    monkeypatch.setattr("tests.fuzz.engine.CORPUS", tmp_path / "corpus")

    def campaign(name, seed=1, runs=4000, **limits):
        target = Target(name, functions[name], (ValueError,), lambda: [b"\0\0\0\0"], **limits)
        made = Campaign(target, seed)
        monkeypatch.setattr(Tracer.__init__, "__defaults__", ((str(tmp_path),),))
        made.fuzz(lambda done: done < runs and not made.faults)
        return made

    return campaign


def test_a_crash_behind_three_branches_is_found_and_made_small(planted):
    """Each branch is one more place, so that inputs get there step by step: blind, it would take 16 million."""
    campaign = planted("run", runs=60_000)
    ((data, fault),) = campaign.faults.values()
    assert data == b"CFS"
    assert "KeyError" in fault.key


def test_work_beyond_linear_is_found(planted):
    """Steps are counted, not timed."""
    ((_, fault),) = planted("slow", steps_base=100, steps_per_byte=20).faults.values()
    assert fault.key == "steps"


def test_memory_beyond_the_limit_is_found(planted):
    """A length that is believed before its bytes are there."""
    ((_, fault),) = planted("greedy").faults.values()
    assert fault.key == "memory"


def test_a_run_without_end_is_stopped(planted):
    """It counts as too many steps."""
    ((data, fault),) = planted("endless").faults.values()
    assert (data, fault.key) == (b"!", "steps")


def test_one_seed_gives_one_campaign(planted):
    """The same inputs in the same order; another seed gives others."""
    first, second, other = (planted("branches", seed, 500) for seed in (7, 7, 8))
    assert first.pool == second.pool
    assert list(first.reached.values()) == list(second.reached.values())
    assert Mutator(first.target, random.Random(7)).mutate(b"abc", [b"xyz"]) == Mutator(
        first.target, random.Random(7)
    ).mutate(b"abc", [b"xyz"])
    assert first.pool != other.pool


def test_few_inputs_reach_what_many_do(planted):
    """A kept corpus is the shortest inputs that reach all that was reached."""
    campaign = planted("branches", seed=2, runs=2000)
    chosen = distil(campaign.target, campaign.pool, bytes_max=1024, files_max=99)
    assert 0 < len(chosen) < len(campaign.pool)
    again = Campaign(campaign.target, seed=0)
    again.target.corpus.mkdir(parents=True)
    for data in chosen:
        (again.target.corpus / file_name(data)).write_bytes(data)
    again.fuzz(lambda runs: False)
    assert again.reached.keys() == campaign.reached.keys()


def test_a_stored_input_is_run_again_by_one_command(tmp_path):
    """Its directory's name is its target's; the exit status tells whether it still breaks something."""
    path = tmp_path / "cursors" / file_name(b"\0")
    path.parent.mkdir()
    path.write_bytes(b"\0")
    command = [sys.executable, "-m", "tests.fuzz", "--replay", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cursors: 1 bytes")
