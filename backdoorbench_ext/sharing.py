"""What several cells need, computed once: fitted attacks, refined training sets, victim models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .errors import InputError
from .files import write_whole


def once(
    file: Path | None, device: torch.device, compute: Callable[[], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """What ``compute`` returns, on ``device``, from ``file`` if somebody was here before; two
    processes never compute it twice.

    ``compute`` may keep the state of its trainings in ``file.with_suffix(".state")``, which is
    removed afterwards.

    Raises:
        InputError: the file is damaged.
    """
    if file is None:
        return compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            made = {name: t.detach().cpu().contiguous() for name, t in compute().items()}
            write_whole(file, save(made))
            shutil.rmtree(file.with_suffix(".state"), ignore_errors=True)
    try:
        return dict(load_file(file, device=str(device)))
    except SafetensorError as error:
        raise InputError(f"{file}: damaged, delete it ({error})") from error
