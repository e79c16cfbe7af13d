"""Learning rates and weight decays of their own for some of an optimizer's parameters."""

from collections.abc import Iterable

import torch
from torch import nn


def give_own_settings(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], option: str, **settings: float
) -> None:
    """Moves those of ``parameters`` that the optimizer holds into groups that differ from their old ones by ``settings``.

    Args:
        option: what asked for it, for the message.
        settings: ``lr``, ``weight_decay``.

    Raises:
        ValueError: the optimizer does not hold the trained ones among them one by one.
    """
    parameters = list(parameters)
    wanted = {id(p) for p in parameters}
    for group in list(optimizer.param_groups):
        own = [p for p in group["params"] if id(p) in wanted]
        group["params"] = [p for p in group["params"] if id(p) not in wanted]
        if own:
            wanted.difference_update(map(id, own))
            optimizer.add_param_group({**group, "params": own, **settings})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    if any(p.requires_grad and id(p) in wanted for p in parameters):
        raise ValueError(
            f"{option}: the optimizer does not hold these parameters one by one (FSDP with flattened parameters, or a layer-wise "
            f"optimizer); set fsdp_version 2, or {option}=None."
        )
