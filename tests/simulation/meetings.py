"""Meetings: from time to time all clients of a run turn to the same object at once, so that what they do is concurrent.

What sites do to one object within a network's latency conflicts whether the network is broken or not. So a run need not
wait for two clients to choose the same name while their sites are apart.
"""

from __future__ import annotations

import random

from nodes.chaos.operation_mix import Step

TOP = b"/shared"
TOPICS = (
    ("write", "truncate"),
    ("setattr",),
    ("setxattr", "removexattr"),
    ("create", "put", "symlink"),
    ("move",),
    ("move", "remove"),
    ("write", "setattr", "remove"),
    ("rmdir", "create", "remove"),
    ("movedir",),
)
"""What a meeting is about: each client does one of these."""
EMPTIED = TOPICS[7]
"""Of one directory: some remove it while others put something into it."""
CROSSING = TOPICS[8]
"""Of a ring of directories: each goes into the next."""


def attend(seed: int, meeting: int, rng: random.Random, site: str) -> Step:
    """What a client does at a meeting: the object is the same for all, what is done to it its own choice.

    Two meetings in a row have the same object: at the second, some have seen what others did at the first.
    """
    common = random.Random(f"{seed}/meeting {meeting // 2}")
    topic = common.choice(TOPICS)
    directory, name, ring = common.choice((TOP, TOP + b"/d0")), b"f%d" % common.randrange(2), common.choice((2, 3))
    other_directory, other_name = rng.choice((TOP, TOP + b"/d0")), b"m%d" % rng.randrange(4)
    kind = rng.choice(topic)
    if topic is EMPTIED:
        directory, name = (TOP, b"hollow") if kind == "rmdir" else (TOP + b"/hollow", b"f0")
    if topic is CROSSING:
        at = rng.randrange(ring)
        directory, name = TOP, b"ring%d" % at
        other_directory, other_name = TOP + b"/ring%d" % ((at + 1) % ring), name
    return Step(
        kind=kind,
        directory=directory,
        name=name,
        other_directory=other_directory,
        other_name=other_name,
        token=f"{site} met {meeting} {rng.random()} ".encode(),
        size=rng.randint(64, 400),
        number=meeting,
    )
