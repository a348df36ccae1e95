"""How an entry is named on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from claudefs_repl.error import CallerError, SiteUnknown
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.entry_address import EntryAddress, parse_entry

CLUSTER = ClusterConfig(
    Path("cluster.toml"), "test", 4, Path("keys"), (SiteConfig("alpha", SiteId(7), "127.0.0.1", 1, Path("alpha")),)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpha/0/17", EntryAddress(SiteId(7), None, 0, 17)),
        ("7/3/1", EntryAddress(SiteId(7), None, 3, 1)),
        ("9/3/1", EntryAddress(SiteId(9), None, 3, 1)),
        ("7:00000000000000ff/3/1", EntryAddress(SiteId(7), 255, 3, 1)),
    ],
)
def test_an_origin_is_a_name_an_id_or_a_journal(text, expected):
    """The incarnation is told where it is not the one that the site writes now."""
    assert parse_entry(text, CLUSTER) == expected
    assert parse_entry(str(expected), CLUSTER) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "alpha", "alpha/0", "alpha/0/17/1", "alpha/x/1", "alpha/0/-1", "alpha/0/0", "alpha/4/1", "7:ff/0/1"),
        *(
            "alpha/0/" + "1" * 5000,
            "9" * 5000 + "/0/1",
            "9" * 30 + "/0/1",
            "7:-0000000000000ff/0/1",
            "9999:" + "0" * 16 + "/0/1",
        ),
        *("alpha/0/9223372036854775808", "alpha/\u0661/1", "0/0/1", None, 5),
    ],
)
def test_another_form_is_refused_with_the_form_that_is_meant(text):
    """No error of Python's shows through."""
    with pytest.raises(CallerError):
        parse_entry(text, CLUSTER)


def test_an_unknown_site_is_told_with_those_there_are():
    """As everywhere on the command line."""
    with pytest.raises(SiteUnknown, match="alpha"):
        parse_entry("zeta/0/1", CLUSTER)
