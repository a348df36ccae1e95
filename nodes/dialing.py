"""How a site dials its peers: from its own address, with its own keys."""

from __future__ import annotations

from dataclasses import dataclass

from claudefs_repl.topology import SiteConfig
from nodes.link import Link, dial
from nodes.seams import Entropy
from protocol.handshake import LocalIdentity, Role
from protocol.keys import KeyRing


@dataclass(frozen=True, slots=True)
class Dialing:
    """What every connection of this site begins with."""

    identity: LocalIdentity
    local_address: str
    keys: KeyRing
    entropy: Entropy
    timeout_s: float

    async def dial(self, peer: SiteConfig, role: Role) -> Link:
        """Connect to a peer in a role; errors as `nodes.link.dial`."""
        return await dial(
            identity=self.identity,
            local_address=self.local_address,
            peer=peer,
            role=role,
            keys=self.keys,
            entropy=self.entropy,
            timeout_s=self.timeout_s,
        )
