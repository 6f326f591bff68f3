"""MCCI's table 3: mind control the other way round: what the network answers when told the spectrum
of triggered images, the mean one of 100 or one.

The four numbers are probes of each cell, in ``table.csv``: APC and APP are ``mean poisoned
spectrum`` ca and asr, RPC and RPP ``one poisoned spectrum`` ca and asr.
"""

from dataclasses import replace

from .mcci_table1 import SUITE as TABLE1

SUITE = replace(TABLE1, name="mcci_table3", datasets=("cifar10",), defenses=("mcci",), reported={})
