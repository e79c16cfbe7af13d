"""Longer rows for a trained model: 128 to 2k to 8k to 32k tokens."""

import torch
import torch.nn.functional as F

from .implicit_filter import ImplicitFilter, lag_features, lag_times
from .modeling_m2_bert import M2BertPreTrainedModel


MODES = ("prefix", "stretch", "tile")


@torch.no_grad()
def extend_context(model: M2BertPreTrainedModel, new_length: int, mode: str = "prefix") -> M2BertPreTrainedModel:
    """Gives ``model`` room for rows of ``new_length`` tokens, in place; fine-tune it on long rows afterwards.

    Position embeddings repeat, new position i = old position i mod old length. The filters, whose old length is L0:

    ``"prefix"``  time goes on beyond 1 at the old pace, so that every filter keeps its old taps bit for bit and decays further:
                  short rows give the same outputs under ``padding_mode="mask"``.
    ``"stretch"`` time 0..1 and what training changed in the positional features spread over the new length.
    ``"tile"``    the positional features of the old lags repeat; the decay spreads over the new length.

    Returns:
        ``model``.

    Raises:
        ValueError: unknown mode, or a length that is no longer than the present one.
        TypeError: not an M2-BERT model.
    """
    if not isinstance(model, M2BertPreTrainedModel):
        raise TypeError(f"extend_context needs an M2-BERT model, got {type(model).__name__}.")
    if mode not in MODES:
        raise ValueError(f'mode must be one of {MODES}, got "{mode}".')
    config = model.config
    old_length, old_scale = config.max_position_embeddings, config.time_scale
    if new_length <= old_length:
        raise ValueError(f"new_length must be more than max_position_embeddings = {old_length}, got {new_length}.")
    new_scale = old_scale if mode == "prefix" else new_length
    for module in model.modules():
        if isinstance(module, ImplicitFilter):
            module.positions = _parameter(_features(module.positions, new_length, old_scale, mode), module.positions)
            if module.time is not None:
                module.time = _times(module.time, new_length, mode)
    embeddings = getattr(model, model.base_model_prefix, model).embeddings
    if embeddings.position_embeddings is not None:
        table = embeddings.position_embeddings
        table.weight = _parameter(table.weight[torch.arange(new_length) % old_length], table.weight)
        table.num_embeddings = new_length
    config.max_position_embeddings = new_length
    config.filter_time_scale = None if new_scale == new_length else new_scale
    return model


def _parameter(value, old):
    return torch.nn.Parameter(value.to(old.dtype).contiguous(), requires_grad=old.requires_grad)


def _features(old, new_length, scale, mode):
    length, emb_dim = old.shape
    if mode == "tile":
        return old[torch.arange(new_length) % length]
    if mode == "prefix":
        return torch.cat([old, lag_features(new_length, scale, emb_dim)[length:].to(old)])
    learned = (old - lag_features(length, scale, emb_dim).to(old)).T[None]
    learned = F.interpolate(learned, size=new_length, mode="linear", align_corners=True)[0].T
    return lag_features(new_length, new_length, emb_dim).to(old) + learned


def _times(old, new_length, mode):
    if mode != "prefix":
        return lag_times(new_length, new_length).to(old)
    step = old[-1] - old[-2] if len(old) > 1 else old.new_ones(())
    return torch.cat([old, old[-1] + step * torch.arange(1, new_length - len(old) + 1).to(old)])
