"""Code of BackdoorBench in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..images import Images


def image_arrays(name: str, images: Images) -> dict[str, Any]:
    """Images as its code has them, for a file: ``NAME_images`` uint8 (n, h, w, 3) and
    ``NAME_labels`` (n,).
    """
    return {
        f"{name}_images": images.x.permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        f"{name}_labels": images.y.cpu().numpy(),
    }


def launch(script: str, name: str, words: list[str], folder: Path, cwd: Path | None = None) -> None:
    """Run a file of this folder in BackdoorBench's Python; what it prints goes into
    ``folder/log.txt``.

    Args:
        script: the file, ``launch.py`` or ``launch_defense.py``; ``words``: what it is told.
        name: what is run, for messages.
        cwd: where it runs, in ``folder`` unless told.

    Raises:
        RuntimeError: it failed; its exit code and last lines.
    """
    command = [
        os.environ.get("BACKDOORBENCH_PYTHON", sys.executable),
        str(Path(__file__).with_name(script)),
        *words,
    ]
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        code = subprocess.run(
            command, cwd=cwd or folder, stdout=out, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        lines = log.read_text("utf-8", "replace").strip().splitlines()[-3:]
        last = " | ".join(line.strip() for line in lines)
        raise RuntimeError(f"backdoorbench:{name} ended with exit code {code}: {last}")
