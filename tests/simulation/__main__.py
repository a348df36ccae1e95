"""`python -m tests.simulation`: seeded runs of whole clusters, the command under `make sim`."""

from __future__ import annotations

import argparse
import json
import os
import sys

from tests.simulation.campaign import SHOWN_MAX, as_json, explain, explain_smallest, run_campaign
from tests.simulation.run import run_seed
from tests.simulation.schedule import from_json


def main() -> int:
    """Run seeds; 1 if one failed, or if enough of them never were on a path that they must be on."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")
    parser.add_argument("--trace", action="store_true", help="every event of one seed, before what it came to")
    parser.add_argument("--schedule", help="faults to use instead of the seed's, as JSON")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for the fewest faults that fail")
    args = parser.parse_args()
    if args.trace or args.schedule:
        return _run_one(args)
    campaign = run_campaign(args.first, args.seeds, args.processes, is_quiet=args.json)
    if args.json:
        print(json.dumps(as_json(campaign)))
        return 0 if campaign.is_good else 1
    if not args.no_shrink:
        for outcome in campaign.failed[:SHOWN_MAX]:
            print(explain_smallest(outcome))
    for name in campaign.missing:
        print(f"INCOMPLETE: no seed of {campaign.count} has reached: {name}")
    print(
        f"{campaign.count} seeds from {args.first}, {len(campaign.failed)} failed; {campaign.virtual_s:.0f} virtual s in "
        f"{campaign.cpu_s:.0f} s of processor time"
    )
    return 0 if campaign.is_good else 1


def _run_one(args: argparse.Namespace) -> int:
    schedule = None if args.schedule is None else from_json(args.schedule)
    outcome = run_seed(args.first, schedule=schedule, sink=sys.stdout.write if args.trace else None)
    if args.json:
        print(json.dumps({"trace_hash": outcome.trace_hash, "violations": outcome.violations}))
    else:
        print(explain(outcome) if outcome.violations else f"seed {outcome.seed} holds, trace {outcome.trace_hash}")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
