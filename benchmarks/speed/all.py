"""All of them, one after the other: ``python -m benchmarks.speed.all [--dataset cifar10 --data DIR]
[--json FOLDER]``.
"""

from __future__ import annotations

from . import cell, equal, grid, pipeline, poisoning, training, triggers


def main() -> None:
    for module in (poisoning, pipeline, training, grid, cell, equal, triggers):
        module.main()


if __name__ == "__main__":
    main()
