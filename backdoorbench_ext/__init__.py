"""Backdoor benchmark suite: attacks and defenses in a registry, a runner, tables ready for a paper."""

import os

__version__ = "0.1.0"

# OpenMP threads that spin while they wait make two jobs on shared cores about ten times slower;
# read once, when torch is first imported, so it has to be set here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
