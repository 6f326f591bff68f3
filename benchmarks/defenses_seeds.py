"""``defenses`` on BadNets, three seeds: how much of a row is the seed.

Without the defenses that its 600 steps of MixMatch leave untrained (ASD, DBD), and without MCCI,
whose grids are others. ``docs/results/defenses-seeds.md`` reads it; not to be compared with
published tables.
"""

from dataclasses import replace

from .defenses import SUITE as DEFENSES

ELSEWHERE = ("asd", "dbd", "mcci")

SUITE = replace(
    DEFENSES,
    name="defenses_seeds",
    attacks=("badnets",),
    defenses=tuple(
        name
        for name in DEFENSES.defenses
        if not name.startswith(ELSEWHERE) and "holds=sample" not in name
    ),
    seeds=(0, 1, 2),
    own_rates={},
)
