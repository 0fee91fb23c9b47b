"""A learner whose weights are held in shards, one a process: FSDP2, torch's `fully_shard`.

A block's weights are put together when it is computed and let go behind it; gradients are added up
on the way back, each process keeping its shard of them. Weights, gradients and moments are
float32, a share of each in each process.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def shard(learner: nn.Module, blocks: Sequence[nn.Module], processes: int, device: str) -> None:
    """Let each of so many processes hold its share of a learner, block after block.

    All of them then go forward and back equally often. Gradients come out as the sum of what each
    has found, divided by their number.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device, (processes,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(learner, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(learner, "divergence")


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together on the CPU; of a shard all processes ask for it at the same time."""
    from torch.distributed.tensor import DTensor

    found = tensor.detach()
    return (found.full_tensor() if isinstance(found, DTensor) else found).cpu()


def laid_out(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as another lies: this process's shard of it, where that is one."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    here = full.to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def plain(number: Tensor) -> float:
    """A scalar that all shards make together."""
    return float(whole(torch.as_tensor(number)))
