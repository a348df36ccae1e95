"""What a client asks for is possible at the time: what is missing is made, what is there is changed."""

from __future__ import annotations

import pytest

from nodes.chaos.operation_mix import OPERATIONS, Chooser, Step, plan_ops

DIRECTORY = {"inode": 7, "kind": "dir"}
FILE = {"inode": 9, "kind": "file"}


def step(kind, directory=b"/shared/d0", name=b"d1", other_directory=b"/shared"):
    return Step(kind, directory, name, other_directory, b"d2", token=b"t ", size=64, number=1)


async def plan(step, **there):
    """The request, where these paths are there; their names have `_` for `/`."""
    tree = {name.replace("_", "/").encode(): found for name, found in there.items()}

    async def resolve(path):
        return tree.get(path)

    return await plan_ops(step, resolve, 5)


@pytest.mark.parametrize(
    ("there", "parent", "name"),
    [
        ({}, 1, b"shared"),
        ({"_shared": DIRECTORY}, 7, b"d0"),
        ({"_shared": DIRECTORY, "_shared_d0": DIRECTORY}, 7, b"d1"),
    ],
)
async def test_the_first_directory_that_is_missing_is_made(there, parent, name):
    """A step whose place is missing brings it nearer, from the root down."""
    (op,) = await plan(step("rmdir"), **there)
    assert (op["op"], op["parent"], op["name"]) == ("mkdir", parent, name)


async def test_directories_are_moved_and_removed():
    """A directory goes into another place, and into no other's; one that is empty for all its site knows is removed."""
    there = {"_shared": {**DIRECTORY, "inode": 3}, "_shared_d0": DIRECTORY, "_shared_d0_d1": {**DIRECTORY, "inode": 8}}
    (move,) = await plan(step("movedir"), **there)
    assert move == {
        "op": "move",
        "from_parent": 7,
        "from_name": b"d1",
        "to_parent": 3,
        "to_name": b"d2",
        "replace": False,
    }
    assert await plan(step("rmdir"), **there) == [{"op": "rmdir", "parent": 7, "name": b"d1"}]
    assert await plan(step("movedir", other_directory=b"/gone"), **there) == []


@pytest.mark.parametrize("kind", [kind for kind in OPERATIONS if kind not in ("mkdir", "rmdir", "movedir")])
async def test_every_operation_on_a_file_has_a_request(kind):
    """Of a name that is there each operation asks for something; of one that is not, whatever can be done without it."""
    place = {"_shared": DIRECTORY, "_shared_d0": DIRECTORY}
    assert bool(await plan(step(kind, name=b"f"), **place)) == (kind not in ("remove", "move"))
    assert bool(await plan(step(kind, name=b"f"), **place, _shared_d0_f=FILE)) == (kind != "symlink")


def test_what_is_for_directories_is_asked_of_directories():
    """Files and directories have different names, so that neither is met in the place of the other."""
    chooser = Chooser(seed=1, site="alpha", client=1, mix=OPERATIONS, shared=0.5, names=3, bytes_max=100)
    steps = [chooser.next() for _ in range(500)]
    for one in steps:
        letter = b"d" if one.kind in ("mkdir", "rmdir", "movedir") else b"f"
        assert one.name[:1] == one.other_name[:1] == letter
    assert {one.directory.count(b"/") for one in steps} == {1, 2, 3}
