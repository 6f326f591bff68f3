"""What several cells need, computed once: fitted attacks, refined training sets, victim models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import one_line, reason
from .files import locked, remove, write_whole

log = logging.getLogger(__name__)


def once(
    file: Path | None, device: torch.device, compute: Callable[[], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """What ``compute`` returns, on ``device``, from ``file`` if somebody was here before; two
    processes never compute it twice. A damaged file is computed anew.

    ``compute`` may keep the state of its trainings in ``file.with_suffix(".state")``, which is
    removed afterwards.
    """
    if file is None:
        return compute()
    with locked(file):
        kept = _kept(file)
        if kept is None:
            kept = {name: t.detach().cpu().contiguous() for name, t in compute().items()}
            write_whole(file, save(kept))
            remove(file.with_suffix(".state"))
    return {name: tensor.to(device) for name, tensor in kept.items()}


def _kept(file: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; None if there is none, or a damaged one, which is removed."""
    if not file.exists():
        return None
    try:
        kept = load(file.read_bytes())
        if kept:
            return dict(kept)
        raise ValueError("it holds nothing")
    # not every OSError: a file that cannot be opened now may be whole
    except (IsADirectoryError, SafetensorError, ValueError) as error:
        dropped(file, error)
        return None


def dropped(file: Path, error: Exception) -> None:
    """Remove what cannot be used, and say so: it will be made anew."""
    log.warning(one_line(f"{file}: damaged, made anew ({reason(error)})"))
    remove(file)
