"""`identity`: what cluster.toml says of one id, both ways, without a running site."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nodes.__main__ import cli
from nodes.config import write_cluster

TABLES = """
[sites.beta.identity.alpha]
uids = [{ from = 1000, to = 2000, count = 10 }, { from = 7, to = 8 }]
unmapped = "nobody"
root = "refuse"
"""


@pytest.fixture
def identity(tmp_path: Path) -> Callable[..., Result]:
    path = write_cluster(tmp_path / "cluster")
    path.write_text(path.read_text() + TABLES)

    def run(*arguments: str, status: int = 0) -> Result:
        result = CliRunner().invoke(cli, ["-c", str(path), "identity", "beta", *arguments])
        assert result.exit_code == status, result.output
        return result

    return run


def test_tables_are_shown_for_every_origin(identity: Callable[..., Result]) -> None:
    """Ranges and policies of each origin; an origin without a table is told too."""
    lines = identity().stdout.splitlines()
    assert lines == [
        "alpha: uid 1000-1009 shows at beta as 2000-2009",
        "alpha: uid 7 shows at beta as 8",
        "alpha: root: refuse; other ids: nobody",
        "gamma: every id shows at beta as it was written",
    ]
    told = json.loads(identity("--json").stdout)
    assert told["from"]["gamma"] is None
    assert told["from"]["alpha"]["uids"][1] == {"from": 7, "to": 8, "count": 1}


@pytest.mark.parametrize(
    ("arguments", "line", "status"),
    [
        (("--uid", "1003"), "uid 1003 of alpha shows at beta as 2003", 0),
        (("--uid", "5"), "uid 5 of alpha shows at beta as 65534 (nobody)", 0),
        (("--gid", "0"), "gid 0 of alpha is refused at beta", 1),
        (("--uid", "2003", "--back"), "uid 2003 at beta is uid 1003 of alpha", 0),
        (("--uid", "1003", "--back"), "uid 1003 at beta is no uid of alpha", 1),
        (("--uid", "65534", "--back"), "uid 65534 at beta is any number of ids, it stands for nobody", 1),
    ],
)
def test_one_id_is_followed_both_ways(
    identity: Callable[..., Result], arguments: tuple[str, ...], line: str, status: int
) -> None:
    """An id of an origin leads to what is shown, and what is shown leads back; no answer is exit status 1."""
    assert identity("--from", "alpha", *arguments, status=status).stdout == line + "\n"


def test_an_id_needs_the_site_that_wrote_it(identity: Callable[..., Result]) -> None:
    """An id without an origin, or --back without an id, is a usage error."""
    assert "--from" in identity("--uid", "5", status=2).stderr
    assert "--uid" in identity("--from", "alpha", "--back", status=2).stderr
    assert json.loads(identity("--from", "alpha", "--uid", "7", "--json").stdout)["uid"] == 8
