"""Evidence: what a site once told or heard to be durable, kept beside its logs.

A log that is shorter than its evidence was damaged or restored, however clean its end looks. The file may be a few
seconds old, which only widens what recovery can tell from a torn tail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.error import WorldError
from claudefs_repl.journal import SITE_ID_MAX, Incarnation, SiteId
from nodes.seams import Storage
from nodes.small_json import parse_json
from nodes.snapshots import cursors_from_json, cursors_to_json, seqs_from_json
from nodes.write_gate import LASTING

EVIDENCE_FILE = "cursors.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the file says.

    Attributes:
        durable: of every journal, what was durable here or, of the own one, anywhere.
        acked: what each peer has acknowledged of the own journal: the lag of a peer that is down after a restart.
        current: the incarnation of each origin that was last met.
        told: the highest tails that peers have told of their own journals: what they say is gone after a lost disk.
        refusing: why the site takes no writes until it is made anew, by the name of the reason (`WriteGate.lasting`).
    """

    durable: Cursors = field(default_factory=dict)
    acked: dict[SiteId, tuple[int, ...]] = field(default_factory=dict)
    current: Mapping[SiteId, Incarnation] = field(default_factory=dict)
    told: Cursors = field(default_factory=dict)
    refusing: Mapping[str, str] = field(default_factory=dict)


async def read_evidence(storage: Storage) -> Evidence:
    """The newest evidence, empty for a new site.

    Raises:
        WorldError: the file is there and cannot be understood.
    """
    content = await storage.read_file(EVIDENCE_FILE)
    if content is None:
        return Evidence()
    try:
        value = parse_json(content)
        acked = {_site(site): seqs_from_json(seqs) for site, seqs in value["acked"].items()}
        current = {_site(site): _incarnation(text) for site, text in value.get("current", {}).items()}
        refusing = {name: str(why) for name, why in value.get("refusing", {}).items() if name in LASTING}
        told = cursors_from_json(value.get("told", {}))
        return Evidence(cursors_from_json(value["durable"]), acked, current, told, refusing)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorldError(f"{EVIDENCE_FILE} cannot be read ({error!r}); restore it from a copy, or remove it") from error


def _site(text: str) -> SiteId:
    if not 1 <= (site := int(text)) <= SITE_ID_MAX:
        raise ValueError(f"{text:.40} is no site id")
    return SiteId(site)


def _incarnation(text: str) -> Incarnation:
    if not 0 <= (incarnation := int(text, 16)) < 1 << 64:
        raise ValueError(f"{text:.40} is no incarnation")
    return Incarnation(incarnation)


async def write_evidence(storage: Storage, evidence: Evidence) -> None:
    """Replace the file, durably.

    Raises:
        DiskFull: there is no room; the old file stays.
    """
    value = {
        "format": FORMAT,
        "durable": cursors_to_json(evidence.durable),
        "acked": {str(site): list(evidence.acked[site]) for site in sorted(evidence.acked)},
        "told": cursors_to_json(evidence.told),
        "refusing": dict(evidence.refusing),
        "current": {str(site): f"{evidence.current[site]:016x}" for site in sorted(evidence.current)},
    }
    await storage.replace_file(EVIDENCE_FILE, json.dumps(value).encode())
