"""Where and how to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Where and how to run; nothing here changes what is computed (another device, or ``compile``,
    rounds differently).

    Args:
        out: folder that holds one folder a suite.
        data: folder of the data sets' files.
        weights: the file that networks start from whose names ask for one.
        download: let torchvision fetch what is missing.
        device: "auto", "cpu", "cuda:0", ...
        models: keep the network of every cell beside its record, as ``.safetensors``.
        compile: mode of ``torch.compile`` for plain training, "" for none.
        audit: log the loss of clean and of poisoned training images, and CA, ASR and ARR of some
            test images, after every epoch, and keep what the networks make of some test images
            beside the record, as ``.embeddings``; no defense sees any of it.
        plugins: files registered with ``--plugin``, for worker processes.
    """

    out: Path = Path("runs")
    data: Path | None = None
    weights: Path | None = None
    download: bool = False
    device: str = "auto"
    models: bool = False
    compile: str = ""
    audit: bool = False
    plugins: tuple[Path, ...] = ()

    def beside(self) -> list[str]:
        """The suffixes of what is kept beside a record."""
        kept = {".embeddings": self.audit, ".safetensors": self.models}
        return [suffix for suffix, wanted in kept.items() if wanted]
