"""BackdoorBench (https://github.com/SCLBD/BackdoorBench), both ways: its records and attacks here,
our attacks and defenses there.

``interface`` is for its code to import; ``docs/backdoorbench.md`` walks through all four ways. No
line of its code is in here.
"""
