"""What training holds in memory at most: ``python -m benchmarks.speed.memory [--model
vit_base_patch16_224] [--batch 8] [--optimizer adadelta]``, with and without ``recompute``.

Two steps are taken, and every tensor is counted as it comes and goes. Activations grow with the
batch, all else does not. What a method has beside the protocol's network (MCCI's AIN, CBD's second
network) comes on top, and so does what the device's own library needs.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch.distributed._tools.mem_tracker import MemTracker

from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import InputError, in_one_line
from backdoorbench_ext.images import Images
from backdoorbench_ext.protocols import MCCI, Protocol

from .timing import arguments, data, keep

# the tracker's names of what a tensor is for
KINDS = {
    "parameters": ("Parameter", "Buffer"),
    "optimizer": ("Optstate",),
    "gradients": ("Gradient",),
    "activations": ("Activation", "Temp", "Other"),
}


def peak(rules: Protocol, images: Images) -> dict[str, float]:
    """MiB by kind when a step of training holds most; ``images`` are those of some steps."""
    engine = Engine(rules, images, device=images.x.device)
    net = engine.new_model()
    optimizer = engine.optimizer(net)
    tracker = MemTracker()
    tracker.track_external(net, optimizer, images.x, images.y)
    with tracker:
        for step in engine.steps("memory", images, epochs=1, keep=(net, optimizer)):
            with engine.autocast():
                step.loss = F.cross_entropy(net(step.x), step.y)
            step.descend(optimizer)
            tracker.reset_mod_stats()
    held = tracker.get_tracker_snapshot("peak")[images.x.device]
    kinds = KINDS | {"in all": ("Total",)}
    return {name: sum(held[kind] for kind in own) / 2**20 for name, own in kinds.items()}


@in_one_line()
def main() -> None:
    given = arguments(__doc__, model="vit_base_patch16_224", batch=8, optimizer="adadelta")
    images = data(given.dataset, given.data, 2 * given.batch, given.device)
    found = {}
    for way in ("plain", "recompute"):
        recipe = replace(
            MCCI.recipe,
            batch_size=given.batch,
            optimizer=given.optimizer,
            recompute=way == "recompute",
        )
        try:
            found[way] = peak(replace(MCCI, model=given.model, recipe=recipe), images)
        except InputError as error:
            print(f"{way}: {error}")
            continue
        told = ", ".join(f"{kind} {size:,.0f}" for kind, size in found[way].items())
        print(f"{given.model}, batch {given.batch}, {way}, MiB: {told}", flush=True)
    keep("memory", given, {}, model=given.model, batch=given.batch, MiB=found)


if __name__ == "__main__":
    main()
