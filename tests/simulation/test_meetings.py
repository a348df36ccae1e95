"""At a meeting clients of different sites do to one object what cannot all be kept."""

from __future__ import annotations

import random

from tests.simulation.meetings import TOP, attend


def test_all_clients_turn_to_the_same_object():
    """The object is chosen by the run and the meeting, what is done to it by each client."""
    kinds = set()
    for meeting in range(200):
        steps = [attend(1, meeting, random.Random(f"{meeting} {client}"), "alpha") for client in range(4)]
        places = {(one.directory, one.name) for one in steps}
        kinds |= {one.kind for one in steps}
        if any(name.startswith(b"ring") for _, name in places):
            assert all(one.other_directory != one.directory + b"/" + one.name for one in steps)
        elif any(b"hollow" in directory + name for directory, name in places):
            assert places <= {(TOP, b"hollow"), (TOP + b"/hollow", b"f0")}
        else:
            assert len(places) == 1
    assert {"write", "setattr", "setxattr", "create", "move", "remove", "rmdir", "movedir"} <= kinds
