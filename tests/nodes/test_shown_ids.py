"""What a site's clients see of the ids that sites wrote: by each field's origin, by this site's tables alone."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import Inode, SiteId
from nodes.config import load_cluster, write_cluster
from nodes.shown_ids import ShownIds
from nodes.store.view import Stat

TABLES = """
[sites.beta.identity.alpha]
uids = [{ from = 1000, to = 2000, count = 10 }]
gids = [{ from = 100, to = 200 }]
unmapped = "refuse"
root = "nobody"
"""
ALPHA, BETA, GAMMA = map(SiteId, (1, 2, 3))
ALPHAS = Stat(Inode(5), "file", 0o640, 1003, 100, 0, 0, 1, None, Inode(1), b"f", ALPHA, ALPHA)


@pytest.fixture
def shown_ids(tmp_path):
    path = write_cluster(tmp_path / "cluster")
    path.write_text(path.read_text() + TABLES)
    cluster = load_cluster(path)
    return ShownIds(cluster, cluster.site("beta"))


@pytest.mark.parametrize(
    ("uid_origin", "gid_origin", "expected"),
    [
        (ALPHA, ALPHA, (2003, 200)),
        (BETA, ALPHA, (1003, 200)),
        (ALPHA, BETA, (2003, 100)),
        (GAMMA, GAMMA, (1003, 100)),
        (None, None, (1003, 100)),
    ],
)
def test_each_id_is_mapped_by_the_site_that_wrote_it(shown_ids, uid_origin, gid_origin, expected):
    """alpha's ids show by the table; beta's own, those of a site without a table and the root's show as they are."""
    found = replace(ALPHAS, uid_origin=uid_origin, gid_origin=gid_origin)
    shown = shown_ids.shown(found, "/f")
    assert (shown.uid, shown.gid) == expected
    assert replace(shown, uid=found.uid, gid=found.gid) == found


def test_an_id_that_is_refused_is_told_with_what_would_map_it(shown_ids):
    """Reading the attributes is refused with object, id, origin and setting; root has a policy of its own."""
    with pytest.raises(OperationRefused) as caught:
        shown_ids.stat_map(replace(ALPHAS, gid=7), "/f", as_written=False)
    assert caught.value.errno == errno.EPERM
    for part in (
        "/f: ",
        "gid 7, as alpha wrote it",
        "gids of [sites.beta.identity.alpha] in ",
        "unmapped",
        "reload beta",
    ):
        assert part in str(caught.value)
    assert shown_ids.shown(replace(ALPHAS, uid=0), "/f").uid == 65534


def test_in_a_listing_only_the_attributes_are_refused(shown_ids):
    """A refused entry has its name, type, number and the reason; as it was written it has everything."""
    entry = replace(ALPHAS, uid=5)
    told = shown_ids.entry_map(entry, as_written=False)
    assert "uid 5" in told.pop("refused")
    assert told == {"inode": 5, "kind": "file", "parent": 1, "name": b"f"}
    written = shown_ids.entry_map(entry, as_written=True)
    assert (written["uid"], written["mode"], written["uid_origin"]) == (5, 0o640, ALPHA)
