"""BackdoorBench (https://github.com/SCLBD/BackdoorBench), both ways: its records and methods here,
our attacks and defenses there.

``interface`` is for its code to import; ``docs/backdoorbench.md`` leads to all ways. No line of its
code is in here.
"""
