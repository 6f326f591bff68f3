"""Which channels hold a backdoor: ``python -m benchmarks.looks.channels cbd_table1 'cifar10
blend/fp/' --scale 0.4 --data DIR``.

The victim's last channels are cut one by one, the quietest on clean images first, as fine-pruning
does. Printed are how much triggers raise a channel, and CA and ASR of the test images after it is
cut, in percent; no defense sees these.
"""

from __future__ import annotations

import torch

from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.lab import Lab

from .cell import asked, lab_of


def look(lab: Lab) -> list[tuple[int, float, float, float]]:
    """Channel, how many times triggers raise it, CA and ASR without it and those before it."""
    engine = lab.engine()
    victim = engine.victim()
    clean = engine.clean(lab.defense.clean_images)
    quiet = engine.predict(victim, clean, victim.features).mean(0)
    sets = (lab.test, lab.triggered)
    z, bad = (engine.predict(victim, images, victim.features) for images in sets)
    kept = torch.ones_like(quiet)
    rows = []
    for channel in quiet.argsort().tolist():
        kept[channel] = 0
        shares = []
        for images, own in zip(sets, (z, bad), strict=True):
            right = victim.head(own * kept).argmax(1) == images.y
            shares.append(100 * float(right.float().mean()))
        raised = float(bad[:, channel].mean() / z[:, channel].mean())
        rows.append((channel, raised, shares[0], shares[1]))
    return rows


@in_one_line()
def main() -> None:
    """Print a line a channel."""
    print(f"{'channel':>8}{'raised':>9}{'CA':>8}{'ASR':>8}")
    for channel, raised, ca, asr in look(lab_of(asked(__doc__).parse_args())):
        print(f"{channel:8}{raised:9.1f}{ca:8.2f}{asr:8.2f}")


if __name__ == "__main__":
    main()
