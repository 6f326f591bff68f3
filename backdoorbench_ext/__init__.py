"""Backdoor benchmark suite: a registry of attacks and defenses, a runner, tables for a paper."""

import os

__version__ = "0.1.0"

# OpenMP threads that spin while they wait make two jobs on shared cores up to ten times slower,
# such that never spin make one job alone a quarter slower; 3,000 turns are some microseconds,
# enough between two operations of a network (docs/speed.md). Read once, when torch is first
# imported: it has to be set here.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
