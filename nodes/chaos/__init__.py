"""Breaking a cluster of real processes on purpose, by a scenario, and judging what is left of its promises."""
