from __future__ import annotations

from pathlib import Path

import pytest

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.uidmap import IdRange, IdTable, OriginIdentity, Policy
from nodes.config import IDENTITY_EXAMPLE, load_cluster, write_cluster


def load(directory: Path, text: str):
    path = write_cluster(directory / "cluster")
    path.write_text(path.read_text() + text)
    return load_cluster(path)


def problems_of(directory: Path, text: str) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        load(directory, text)
    return [problem.partition(": ")[2] for problem in caught.value.problems]


def test_a_site_has_a_table_for_each_origin(tmp_path: Path) -> None:
    """Tables reach the site that reads, by origin, with one policy for users and groups."""
    cluster = load(
        tmp_path,
        """
        [sites.beta.identity.gamma]
        root = "nobody"
        [sites.beta.identity.alpha]
        uids = [{ from = 1000, to = 2000, count = 10 }, { from = 5, to = 6 }]
        gids = [{ from = 100, to = 100 }]
        unmapped = "refuse"
        """,
    )
    alpha, beta, gamma = cluster.sites
    assert alpha.identity == gamma.identity == ()
    uids = IdTable((IdRange(1000, 2000, 10), IdRange(5, 6, 1)), Policy.REFUSE, Policy.PASSTHROUGH)
    gids = IdTable((IdRange(100, 100, 1),), Policy.REFUSE, Policy.PASSTHROUGH)
    squashed = IdTable((), Policy.PASSTHROUGH, Policy.NOBODY)
    assert beta.identity == (
        OriginIdentity(alpha.site_id, uids, gids),
        OriginIdentity(gamma.site_id, squashed, squashed),
    )


def test_every_problem_of_a_table_is_told_with_its_key(tmp_path: Path) -> None:
    """Wrong names, keys, types and ranges are told at once, each with what is expected."""
    problems = problems_of(
        tmp_path,
        """
        [sites.alpha.identity.alpha]
        [sites.alpha.identity.delta]
        [sites.alpha.identity.beta]
        unmapped = "deny"
        [sites.alpha.identity.gamma]
        uids = { from = 1, to = 2 }
        """,
    )
    assert problems == [
        "sites.alpha.identity.alpha: expected the name of another site; a site's own ids are never mapped",
        "sites.alpha.identity.delta: expected the name of another site; there are: beta, gamma",
        "sites.alpha.identity.beta.unmapped: expected passthrough, nobody or refuse, got 'deny'",
        "sites.alpha.identity.gamma.uids: expected a list of { from = ID, to = ID, count = HOW_MANY }, "
        "got {'from': 1, 'to': 2}",
    ]


def test_the_ranges_of_a_table_are_told_one_by_one(tmp_path: Path) -> None:
    """A range that cannot be is told with its place in the list; two that overlap, with both."""
    problems = problems_of(
        tmp_path,
        """
        [sites.alpha.identity.beta]
        uids = [{ from = 1000, to = 0 }, { from = 1000 }, 7, { from = 1, to = 2, size = 3 }]
        gids = [{ from = 10, to = 100, count = 5 }, { from = 14, to = 200 }, { from = 20, to = 60000, count = 9999 }]
        """,
    )
    where = "sites.alpha.identity.beta"
    assert problems == [
        f"{where}.uids[0].to: expected a whole number from 1 to 4294967294, got 0",
        f"{where}.uids[1].to: missing; expected a whole number from 1 to 4294967294",
        f"{where}.uids[2]: expected a table, got 7",
        f"{where}.uids[3].size: unknown key; there are: from, to, count",
        f"{where}.gids: {{ from = 20, to = 60000, count = 9999 }} shows an id as 65534, which stands for nobody",
        f"{where}.gids: {{ from = 10, to = 100, count = 5 }} and {{ from = 14, to = 200, count = 1 }} map an id twice: "
        "their from parts overlap",
    ]


def test_a_table_of_a_site_that_has_other_problems_is_not_called_unknown(tmp_path: Path) -> None:
    """A site whose own section cannot be used is still a site: only its own problem is told."""
    problems = problems_of(tmp_path, '[sites.alpha.identity.delta]\nroot = "nobody"\n[sites.delta]\nid = 9\n')
    assert {problem.partition(":")[0] for problem in problems} == {"sites.delta.address", "sites.delta.port"}


def test_the_example_in_a_new_cluster_toml_can_be_used(tmp_path: Path) -> None:
    """What the file shows as a comment is a table, once it is uncommented."""
    path = write_cluster(tmp_path / "cluster")
    assert "\n".join(IDENTITY_EXAMPLE) in path.read_text()
    beta = load(tmp_path / "used", "\n".join(line.removeprefix("# ") for line in IDENTITY_EXAMPLE[1:])).site("beta")
    assert beta.identity[0].uids.map(1009) == 2009
