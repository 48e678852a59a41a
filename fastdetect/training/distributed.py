"""The processes of a run: one, or those that torchrun started."""

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from fastdetect.errors import UsageError
from fastdetect.training.loop import pick_device

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train one model; a context manager that leaves the group at the end.

    Attributes:
        rank, world: its number and how many there are; number 0 alone validates and writes.
        device: what it computes on.
        group: all of them, for collective operations; None where there is one process.
        founder: whether this process group was made here, and ends with the context.
    """

    rank: int
    world: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    founder: bool = False

    @classmethod
    def join(cls, device: str) -> "Ranks":
        """Meet the other processes that torchrun started (NCCL on GPUs, else gloo), or be alone without it.

        A process group that is there already is used, and left as it is.

        Raises:
            UsageError: no such device, or more processes on this machine than GPUs.
        """
        picked = pick_device(device)
        founder = not dist.is_initialized()
        if founder and not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
            return cls(0, 1, picked)
        if picked.type == "cuda":
            local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if local >= gpus:
                raise UsageError(f"process {local} of this machine has no GPU, there are {gpus}; use --nproc-per-node")
            picked = torch.device("cuda", local)
            torch.cuda.set_device(picked)
        if founder:
            dist.init_process_group("nccl" if picked.type == "cuda" else "gloo")
        group = dist.group.WORLD if dist.get_world_size() > 1 else None
        return cls(dist.get_rank(), dist.get_world_size(), picked, group, founder)

    @property
    def main(self) -> bool:
        """Whether this is the process that validates and writes."""
        return self.rank == 0

    def agree(self, *values: float) -> tuple[float, ...]:
        """Return process 0's values, so that clocks and validations lead all processes to one decision."""
        if self.group is None:
            return values
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0, group=self.group)
        return tuple(told.tolist())

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values / self.world

    def synced(self, module: Module) -> Module:
        """Return a module whose batch norms see the pictures of all processes, on GPUs; torch has none for CPUs.

        On CPUs they see their own process's; process 0's running statistics are those that are saved.
        """
        if self.group is None or self.device.type != "cuda":
            return module
        return convert_sync_batchnorm(module)

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that its gradients are the mean over all processes."""
        if self.group is None:
            return module
        # what a setting leaves out of a model gets no gradient
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.founder:
            dist.destroy_process_group()
