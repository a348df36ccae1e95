"""What trace and deadletters show of a site's answer."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, RenderableType

from nodes.commands import ledger

EXACT = {"after_us": 1_700_000_000_123_456, "by_us": 1_700_000_000_123_456}
SPAN = {"after_us": 1_700_000_000_000_000, "by_us": 1_700_000_001_000_000}
BEFORE = {"after_us": None, "by_us": 1_700_000_000_000_000}

LOSS = {"conflict": "ab", "kind": "attribute", "entry": "2:a/0/5", "rule": "the later has it"}


def site(**more: Any) -> dict[str, Any]:
    return {"durable": EXACT, "applied": EXACT, "dead_letter": None, "shows": True, "content": None, **more}


def told(sites: dict[str, Any], **more: Any) -> dict[str, Any]:
    content = {"op": "write", "inode": "ab", "time_us": EXACT["by_us"], "payload_bytes": 1234}
    base = {"entry": "1:0000000000000001/0/7", "origin": "alpha", "roles": [], "content": content}
    return {**base, "content_missing": None, "sites": sites, **more}


def lines(shown: RenderableType) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=200).print(shown)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_trace_has_a_line_for_each_site_with_its_times() -> None:
    """A time is told no more exactly than it is known; what did not happen yet has none."""
    peers = {"beta": {"sent": True, "acked": SPAN}, "gamma": {"sent": True, "acked": None}}
    peers["delta"] = {"sent": False, "acked": None}
    sites = {
        "alpha": site(peers=peers, shows=False),
        "beta": site(durable=BEFORE),
        "gamma": site(durable=None, applied=None, shows=None),
        "delta": {"unreachable": "delta is [bold] down"},
    }
    shown = lines(ledger.render_trace(told(sites, roles=["made", "last name"])))
    assert shown[0] == "made, last name: entry 1:0000000000000001/0/7 of alpha"
    assert shown[1] == "write of ab, 1,234 bytes, stamped 2023-11-14T22:13:20.123456Z"
    alpha, beta, gamma, delta = shown[3:7]
    assert "2023-11-14 22:13:20.123" in alpha
    assert "made here" in alpha
    assert alpha.endswith("nothing of it shows any more")
    assert "before 2023-11-14 22:13:20.000" in beta
    assert "2023-11-14 22:13:20.000 to 2023-11-14 22:13:21.000" in beta
    assert beta.endswith("current")
    assert gamma.split() == ["gamma", "-", "sent,", "not", "acknowledged", "-"]
    assert delta.split() == ["delta", "?", "not", "sent", "?", "delta", "is", "[bold]", "down"]


def test_a_trace_tells_dead_letters_and_what_an_entry_lost_to() -> None:
    """Why it has no effect stands beside the site; a removal is not said to show or not."""
    sites = {"beta": site(dead_letter="payload version 2"), "gamma": site(lost_to=[LOSS])}
    shown = lines(ledger.render_trace(told(sites)))
    assert shown[3].endswith("dead letter: payload version 2")
    assert shown[4].endswith("current; lost to entry 2:a/0/5: the later has it (attribute conflict ab)")
    removal = {"op": "unlink", "inode": "ab", "time_us": 1 << 62, "payload_bytes": 1}
    shown = lines(ledger.render_trace(told({"beta": site()}, content=removal)))
    assert f"stamped {1 << 62} us" in shown[1]
    assert "current" not in shown[3]


def test_a_trace_without_content_says_why() -> None:
    """An entry whose content is gone can still be followed."""
    shown = lines(ledger.render_trace(told({"beta": site()}, content=None, content_missing="it was trimmed")))
    assert shown[1] == "what it is, is not known: it was trimmed"
    assert "?" in shown[3]


def test_an_entry_that_nobody_has_was_made_nowhere() -> None:
    """What is asked for beyond the end of a journal is not said to be there."""
    nothing = site(durable=None, applied=None, shows=None, peers={"beta": {"sent": False, "acked": None}})
    sites = {"alpha": nothing, "beta": site(durable=None, applied=None, shows=None)}
    shown = lines(ledger.render_trace(told(sites, content=None, content_missing="no site that was asked has it")))
    assert [line.split() for line in shown[3:5]] == [["alpha", "-", "-", "-"], ["beta", "-", "not", "sent", "-"]]
