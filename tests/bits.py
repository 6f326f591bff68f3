"""What every method and the demo compute, as digests that are the same on every x86-64 CPU of a
maker.

``python tests/bits.py attacks defenses demo`` prints them as JSON; with ``--write`` they are kept
in ``bits.json`` for this version of PyTorch. Kernels are chosen by the CPU they find, so they are
told not to look: no oneDNN, PyTorch's plain kernels, MKL's compatible branch. On an Intel CPU that
branch rounds otherwise than on one of AMD, whatever instructions it is allowed: 9 of 48 digests.
"""

import hashlib
import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

PLAIN = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
FILE = Path(__file__).with_suffix(".json")


def maker():
    """The maker of the CPU, as Linux tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    return next((line.split()[-1] for line in lines if line.startswith("vendor_id")), "unknown")


def place():
    """What digests hold for: the CPU's kind, the C library and PyTorch's version."""
    import torch

    kind = (platform.machine(), maker(), *platform.libc_ver())
    return " ".join((*kind, "torch", torch.__version__.partition("+")[0]))


def of(tensors):
    """The digest of named tensors."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(name.encode())
        found.update(value.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def attacks():
    import torch
    from test_methods import ATTACKS

    from backdoorbench_ext import contract
    from backdoorbench_ext.contract import engine, make_images

    for name in ATTACKS:
        clean = make_images(48)
        attack = contract.attack(name, clean)
        made = attack.poison(clean, target=1, rate=0.1, rng=torch.Generator().manual_seed(0))
        if attack.refines:
            made.x[made.mask] = attack.refine(clean, made, engine(clean))
        yield f"attack {name}", of({"x": made.x, "y": made.y, "test": attack.test_set(clean, 1).x})


def defenses():
    from test_methods import VARIANTS

    from backdoorbench_ext.contract import defense, engine, make_images

    for text in VARIANTS:
        images = make_images()
        run = engine(images)
        method = defense(text)
        yield f"defense {text}", of(method.finish(method.fit(images, run), run).state_dict())


def demo():
    """The cells of the demo at one epoch, on half of its images."""
    from backdoorbench_ext import suite
    from backdoorbench_ext.lab import Lab
    from backdoorbench_ext.options import Options
    from backdoorbench_ext.work import run_cell

    grid = replace(suite.load("demo"), datasets=("digits[train=2000,test=100]",)).changed(epochs=1)
    with TemporaryDirectory() as folder:
        for cell in grid.cells():
            net = run_cell(Lab(cell, Options(out=Path(folder), device="cpu"))).net
            yield f"demo {cell.attack} {cell.defense}", of(net.state_dict())


KINDS = {"attacks": attacks, "defenses": defenses, "demo": demo}


def main():
    if any(os.environ.get(name) != value for name, value in PLAIN.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | PLAIN)
    import torch

    from backdoorbench_ext import engine

    torch.backends.mkldnn.enabled = False
    engine.has_bf16 = lambda device: False
    kinds = [word for word in sys.argv[1:] if word != "--write"]
    found = {name: bits for kind in kinds for name, bits in KINDS[kind]()}
    if "--write" in sys.argv:
        kept = json.loads(FILE.read_text()) if FILE.exists() else {}
        kept[place()] = kept.get(place(), {}) | found
        FILE.write_text(json.dumps(kept, indent=1) + "\n")
    else:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
