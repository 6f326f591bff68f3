"""Which of BackdoorBench's attacks, defenses and detectors run here: ``python -m
benchmarks.looks.survey --data DIR --out DIR [--model NAME] [--layer NAME] [--only NAME ...]``, with
``BACKDOORBENCH_HOME`` set.

Each stands in one cell: an attack before No Defense, a defense or detector behind BadNets, on a
thousand images of CIFAR-10 and a network that most of its scripts know. Lengths are cut to an epoch
or two, so that an hour of a CPU does: what is shown is that a script runs and that both sides count
alike, not what a method can do. Printed as Markdown; cells that have their record are not run
again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from backdoorbench_ext import records, registry, runner
from backdoorbench_ext.errors import InputError, in_one_line
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.options import Options
from backdoorbench_ext.protocols import BACKDOORBENCH
from backdoorbench_ext.suite import Cell, Suite
from backdoorbench_ext.toolbox import checkout
from backdoorbench_ext.toolbox.attacks import NO_TRAINING_SET

RULES = replace(
    BACKDOORBENCH,
    name="survey",
    recipe=replace(BACKDOORBENCH.recipe, epochs=30, batch_size=32, lr=0.05),
    overrides={},
)
# flags by script, its name or "FOLDER/": what makes it short, and what it asks for
SHORT: dict[str, dict[str, object]] = {
    "attack/": {"epochs": 1, "num_workers": 0, "batch_size": 32},
    "lira": {"epochs": 2, "both_train_epochs": 1},
    "inputaware": {"clean_train_epochs": 1},
    "abl": {"tuning_epochs": 1, "finetuning_epochs": 1, "unlearning_epochs": 1},
    "detection_pretrain.abl": {"tuning_epochs": 1},
    "ac": {"epochs": 1},
    "agpd": {"tau": 0.05, "xi": 0.5},
    "anp": {"nb_iter": 4, "print_every": 2, "pruning_step": 0.3},
    "beatrix": {"target_layer": ""},
    "cd": {"cd_num_steps": 2},
    "d-br": {"epochs": 1},
    "d-st": {"epochs": 1},
    "ft": {"epochs": 2},
    "ft-sam": {"epochs": 2},
    "fp": {"epochs": 1, "once_prune_ratio": 0.2},
    "mcr": {"train_curve_epochs": 1, "ft_epochs": 1, "test_curve_every": 1},
    "nad": {"epochs": 1, "te_epochs": 1},
    "nc": {"epochs": 1, "nc_epoch": 1},
    "rnp": {"unlearning_epochs": 1, "recovering_epochs": 1, "pruning_step": 0.3},
    "sau": {"epochs": 1, "n_rounds": 1},
    "scan": {"target_layer": ""},
    "sentinet": {"target_layer": ""},
    "spectral": {"epochs": 1},
    "detection_pretrain.spectral": {"target_layer": ""},
}


def grid(model: str, layer: str) -> Suite:
    """Every script of the checkout; ``layer`` is where some of them look into the network."""
    attacks = [(name, "attack/") for name in checkout.attacks()]
    others = [(name, "") for name in checkout.defenses()]

    def told(name: str, folder: str) -> str:
        script = name.partition(":")[2]
        flags = SHORT.get(folder, {}) | SHORT.get(script, {})
        if folder:
            # of some only images are made, of others the network counts
            if script in checkout.DISPATCH:
                flags = {}
            elif script not in NO_TRAINING_SET:
                flags = flags | {"model": model.rpartition(":")[2]}
        if "target_layer" in flags:
            flags = flags | {"target_layer": layer}
        return registry.join(name, flags)

    return Suite(
        name="survey",
        protocol=replace(RULES, model=model),
        datasets=("cifar10[train=1000,test=1000]",),
        attacks=("badnets", *(told(*pair) for pair in attacks)),
        defenses=("none", *(told(*pair) for pair in others)),
    )


def wanted(suite: Suite, only: list[str]) -> Iterator[Cell]:
    """An attack before No Defense, a defense behind BadNets."""
    for cell in suite.cells():
        script = (cell.attack if cell.defense == "none" else cell.defense).partition("[")[0]
        alone = cell.attack == "badnets" or cell.defense == "none"
        if alone and (not only or script.partition(":")[2] in only):
            yield cell


def row(cell: Cell, folder: Path, refused: str) -> list[str]:
    """Script, what came of it, ours and its CA/ASR/ARR, seconds."""
    script = (cell.attack if cell.defense == "none" else cell.defense).partition("[")[0]
    path = folder / cell.path
    name = f"`{script.partition(':')[2] or script}`"
    if refused:
        return [name, f"refused: {refused}", "", "", ""]
    if not path.exists():
        failed = path.with_suffix(".failed")
        why = failed.read_text("utf-8").strip().splitlines()[-1] if failed.exists() else "not run"
        return [name, why, "", "", ""]
    record = records.read(path)
    counts = record["metrics"]
    ours = " / ".join(f"{100 * hits / n:.1f}" for hits, n in counts.values())
    curves = record["curves"]
    names = ("its CA", "its ASR", "its ARR")
    its = " / ".join(f"{curves[own][-1]:.1f}" for own in names if own in curves)
    found = record.get("suspects", {})
    for suspicion in found.values() if script.startswith("backdoorbench:") else ():
        shares = ((key, share) for key, share in suspicion.items() if share is not None)
        its = ", ".join(f"{key.upper()} {share:.2f}" for key, share in shares)
    stages = record["time"]["stages"]
    spent = [own for stage, own in stages.items() if stage.endswith(".py")]
    seconds = spent[0] if spent else record["time"]["poisoning"]
    return [name, "runs", ours, its, f"{seconds:.0f}"]


@in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of cifar10.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--model", default="torchvision:resnet18")
    parser.add_argument("--layer", default="layer4", help="for detectors of embeddings")
    parser.add_argument("--only", nargs="*", default=[], help="scripts, by their names")
    given = parser.parse_args()
    checkout.home()
    suite = grid(given.model, given.layer)
    options = Options(out=given.out, data=given.data, device="cpu")
    cells = list(wanted(suite, given.only))
    refused: dict[Path, str] = {}
    for cell in cells:
        try:
            Lab(cell, options).check()
        except InputError as error:
            refused[cell.path] = str(error).partition(": ")[2] or str(error)
    able = [cell for cell in cells if cell.path not in refused]
    runner.run(runner.plan(suite, able, options), jobs=1, console=Console(stderr=True))
    print("| script | outcome | ours: CA / ASR / ARR | its own | seconds |\n|---|---|---|---|---|")
    for cell in cells:
        print(f"| {' | '.join(row(cell, given.out / suite.name, refused.get(cell.path, '')))} |")


if __name__ == "__main__":
    main()
