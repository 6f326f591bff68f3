"""All of them, one after the other: ``python -m benchmarks.speed.all [--dataset cifar10 --data DIR] [--json results/speed]``."""

from __future__ import annotations

import sys

from . import cell, pipeline, poisoning, training, triggers


def main() -> None:
    words = sys.argv[1:]
    for module in (poisoning, pipeline, training, cell):
        sys.argv[1:] = words
        module.main()
    known = [words[i : i + 2] for i, word in enumerate(words) if word in ("--dataset", "--data")]
    folder = [words[i + 1] for i, word in enumerate(words) if word == "--json"]
    sys.argv[1:] = [word for pair in known for word in pair] + ["--rounds", "3", *(["--json", f"{folder[0]}/triggers.json"] if folder else [])]
    triggers.main()


if __name__ == "__main__":
    main()
