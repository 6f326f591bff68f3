"""Demo, CBD's T1: how long f_B is trained, and at which learning rate, decides whether CBD works on
the demo's data.

Read in docs/results/demo.md; the demo's own T1 was chosen from such runs, on the same test images.
"""

from dataclasses import replace

from .demo import SUITE as DEMO

SUITE = replace(
    DEMO,
    name="demo_t1",
    defenses=(
        "none",
        *(
            f"cbd[variant=release,t1_steps={n},t1_schedule={s}]"
            for s in ("constant", "one-cycle")
            for n in (250, 350, 400, 450)
        ),
    ),
)
