"""Everything that is fuzzed, by name."""

from __future__ import annotations

from tests.fuzz.targets_disk import DISK
from tests.fuzz.targets_wire import WIRE

TARGETS = {target.name: target for target in (*WIRE, *DISK)}
