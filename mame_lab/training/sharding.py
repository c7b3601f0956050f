"""`trainer.strategy=fsdp`: weights shared out among the processes by FSDP2, and checkpoints like those of any run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


class Sharded(ModelParallelStrategy):
    """Every process holds a share of what `configure_model` of a task shards, and of its optimizer's state.

    Checkpoints hold whole tensors in one file, under the names and numbers that they have without sharding: a run may
    go on, and be evaluated, under any strategy.
    """

    load_checkpoint = ParallelStrategy.load_checkpoint

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        """Connects the processes, also where no task is there yet."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        if self.lightning_module is None:
            self._setup_distributed()
        else:
            super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole on the first process, which writes it."""
        return tree_map(self._whole, optimizer.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.lightning_module, checkpoint["state_dict"], options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, whole in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            shares = {
                number: {name: _share(value, parameters[number]) for name, value in state.items()}
                for number, state in whole["state"].items()
            }
            optimizer.load_state_dict(whole | {"state": shares})

    def _whole(self, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.is_global_zero else None


def _share(value: Any, parameter: Tensor) -> Any:
    """What this process holds of a tensor that lies as a parameter does; anything else as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    device = parameter.to_local().device
    return distribute_tensor(value.to(device), parameter.device_mesh, parameter.placements, src_data_rank=None)
