"""The pocket cluster: a seed gives one run, in which the code as it is keeps its promises."""

from __future__ import annotations

from tests.simulation.pocket.run import run_seed


def test_a_seed_is_kept_and_gives_the_same_run_again():
    """Twice the same answers, logs and events come of one seed, and no promise is broken."""
    one, other = run_seed(4), run_seed(4)
    assert one.violations == other.violations == []
    assert one.observation == other.observation
    assert one.reached == other.reached
