"""The faults that a scenario may ask for: what each of them means and which values it takes.

`KINDS` is the one table of them. Whatever carries out faults has an action for each kind; a test holds the two together.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from nodes.config_check import Table

SCENARIO_S_MAX = 86_400
"""A scenario runs for a day at most: what goes on for longer is a service, not an experiment."""
REPEAT_MAX = 10_000

Seconds = Annotated[float, Field(ge=0, le=SCENARIO_S_MAX)]
_site = Annotated[str | None, Field(description="a site's name, or 'any' for one that the seed chooses")]
_sites = Annotated[list[str] | None, Field(min_length=1, description="a list of sites' names")]
_link = Annotated[
    str | None, Field(description="'alpha -> beta' for one way, 'alpha <-> beta' for both; * is every other site")
]


class Target(enum.Enum):
    """What a fault is done to."""

    SITES = "sites"
    LINKS = "links"
    CLUSTER = "cluster"


class Needs(enum.Enum):
    """What a machine has to permit for a fault, and how a report names it when it does not."""

    NOTHING = ""
    POWER = "root, loop devices, mkfs.ext4 and ext4's shutdown ioctl"


class FaultTable(Table):
    """What every `[[timeline]]` entry has."""

    at_s: Annotated[float, Field(ge=0, le=SCENARIO_S_MAX, description="seconds after the workload began")]
    fault: Annotated[str, Field(description="the kind of fault")]
    for_s: Annotated[
        float | None,
        Field(ge=0, le=SCENARIO_S_MAX, description="seconds until it is undone; without it, it lasts to the end"),
    ] = None
    repeat: Annotated[
        int, Field(ge=1, le=REPEAT_MAX, description=f"a whole number from 1 to {REPEAT_MAX}, with every_s")
    ] = 1
    every_s: Annotated[
        float | None, Field(gt=0, le=SCENARIO_S_MAX, description="seconds from one repetition to the next")
    ] = None


class SiteFault(FaultTable):
    """A fault of one or several sites."""

    site: _site = None
    sites: _sites = None


class LinkFault(FaultTable):
    """A fault of the network: of some links, or of every link of a site."""

    site: _site = None
    link: _link = None


class Wipe(SiteFault):
    """Gone with the whole disk."""

    bootstrap: Annotated[
        bool, Field(description="true to make it anew from a peer's snapshot rather than just start it")
    ] = False


class DiskFull(SiteFault):
    """No room on the disk."""

    leave_bytes: Annotated[int, Field(ge=0, description="a whole number of bytes that stay free")] = 0


class Clock(SiteFault):
    """A wrong clock."""

    offset_s: Annotated[float, Field(ge=-2_592_000, le=2_592_000, description="seconds ahead, at most 30 days")]


class Partition(LinkFault):
    """Nothing passes."""

    groups: Annotated[
        list[list[str]] | None, Field(min_length=2, description="lists of sites that cannot reach one another")
    ] = None


class Delay(LinkFault):
    """Late bytes."""

    delay_ms: Annotated[float, Field(ge=0, le=60_000, description="milliseconds from 0 to 60000")] = 0.0
    jitter_ms: Annotated[float, Field(ge=0, le=60_000, description="milliseconds from 0 to 60000")] = 0.0


class Bandwidth(LinkFault):
    """Few bytes."""

    bytes_per_s: Annotated[int, Field(ge=100, le=1 << 30, description="a whole number of bytes a second, at least 100")]


class Corrupt(LinkFault):
    """Flipped bits."""

    probability: Annotated[
        float, Field(gt=0, le=1, description="of a flipped bit in a run of at most 64 KiB, above 0 up to 1")
    ] = 0.05


class Truncate(LinkFault):
    """Connections that end early."""

    after_bytes: Annotated[int, Field(ge=0, le=1 << 40, description="a whole number of bytes")]
    how: Annotated[Literal["end", "reset"], Field(description="'end' or 'reset'")] = "end"


class Flap(LinkFault):
    """A cut that comes and goes."""

    period_s: Annotated[float, Field(ge=0.05, le=3600, description="seconds from one cut to the next, 0.05 to 3600")]


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One kind of fault.

    Attributes:
        lasts: whether it is undone after `for_s`; else it is over at once.
        meaning: what it does, for help and for the timeline of a verdict.
    """

    table: type[FaultTable]
    target: Target
    lasts: bool
    meaning: str
    needs: Needs = Needs.NOTHING


KINDS: Mapping[str, FaultKind] = {
    "kill": FaultKind(SiteFault, Target.SITES, True, "SIGKILL, then started again"),
    "stop": FaultKind(SiteFault, Target.SITES, True, "SIGTERM, an ordered end, then started again"),
    "restart": FaultKind(SiteFault, Target.SITES, False, "an ordered end, and started at once"),
    "pause": FaultKind(SiteFault, Target.SITES, True, "SIGSTOP, then SIGCONT"),
    "wipe": FaultKind(Wipe, Target.SITES, True, "SIGKILL, and the data directory is removed; then made anew"),
    "power_loss": FaultKind(
        SiteFault, Target.SITES, True, "network, then disk, then process are gone at once", Needs.POWER
    ),
    "disk_full": FaultKind(DiskFull, Target.SITES, True, "the disk has no room: a tmpfs as root, else a quota"),
    "clock": FaultKind(Clock, Target.SITES, True, "the clock is wrong"),
    "partition": FaultKind(Partition, Target.LINKS, True, "nothing passes, one way or both"),
    "flap": FaultKind(Flap, Target.LINKS, True, "nothing passes, every other half period"),
    "delay": FaultKind(Delay, Target.LINKS, True, "everything comes late"),
    "bandwidth": FaultKind(Bandwidth, Target.LINKS, True, "little passes in a second"),
    "stop_reading": FaultKind(LinkFault, Target.LINKS, True, "the receiver takes no bytes: a window of zero"),
    "refuse": FaultKind(LinkFault, Target.LINKS, True, "whoever dials is refused"),
    "corrupt": FaultKind(Corrupt, Target.LINKS, True, "bits are flipped"),
    "truncate": FaultKind(Truncate, Target.LINKS, True, "each connection ends after so many bytes"),
    "reset": FaultKind(LinkFault, Target.LINKS, False, "every connection ends with a reset"),
    "half_open": FaultKind(
        LinkFault, Target.LINKS, False, "listeners lose their connections, diallers do not hear of it"
    ),
    "rotate_keys": FaultKind(FaultTable, Target.CLUSTER, False, "new keys are added and used, the old ones retired"),
}


def describe(kind: str, options: Mapping[str, Any]) -> str:
    """A fault's own values in words, empty if it has none."""
    match kind:
        case "delay":
            return f"{options['delay_ms']:g} ms, up to {options['jitter_ms']:g} ms more"
        case "bandwidth":
            return f"{options['bytes_per_s']:,} bytes/s"
        case "corrupt":
            return f"one run of bytes in {1 / options['probability']:.0f}"
        case "truncate":
            return f"{options['how']} after {options['after_bytes']:,} bytes"
        case "flap":
            return f"every {options['period_s']:g} s"
        case "clock":
            return f"{options['offset_s']:+g} s"
        case "disk_full":
            return f"{options['leave_bytes']:,} bytes are left"
        case "wipe":
            return "bootstrapped" if options["bootstrap"] else ""
    return ""


def options_text(kind: str) -> str:
    """The values that a kind of fault takes besides when and where, for help."""
    fields = KINDS[kind].table.model_fields
    return "\n".join(
        f"{name}{'' if field.is_required() else f' = {json.dumps(field.default)}'}: {field.description}"
        for name, field in fields.items()
        if name not in OF_EVERY_KIND
    )


OF_EVERY_KIND = {"at_s", "fault", "for_s", "repeat", "every_s", "site", "sites", "link", "groups"}
"""The keys that say when and where, whatever is done."""
