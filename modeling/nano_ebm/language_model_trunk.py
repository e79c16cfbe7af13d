"""A causal LM from transformers in the place of the trunk: its final states, and whether they are all its logits depend on."""

import os

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .attention_layout import AttentionLayout
from .configuration_nano_ebm import OWN_FIELDS
from .field_types import refusals_of


def language_model_states(
    lm,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    layout: AttentionLayout,
    segmented: bool,
    cache,
    all_layers: bool = False,
) -> list[Tensor]:
    """The last, normed states of the decoder of ``lm``, ``(batch, seq, hidden)``; with ``all_layers`` those before it as well.

    Args:
        attention_mask: as the LM takes it, ``(batch, keys)``.
        segmented: rows hold several documents, so that the layout's own mask is needed.

    Raises:
        ValueError: documents packed in rows with an attention implementation that takes no mask of that kind.
    """
    if segmented:
        attention_mask = _four_dimensional(lm, layout)
    out = lm.get_decoder()(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=layout.position_ids,
        past_key_values=cache,
        use_cache=cache is not None,
        output_hidden_states=all_layers,
    )
    return [*(out.hidden_states or ())[:-1], out.last_hidden_state]


def _four_dimensional(lm, layout):
    kind = lm.config._attn_implementation
    if kind == "sdpa":
        return layout.mask
    if kind != "eager":
        raise ValueError(
            f'segment_ids need attention "sdpa" or "eager", got "{kind}"; call set_attn_implementation("sdpa") first.'
        )
    dtype = lm.get_decoder().dtype
    return torch.zeros(layout.mask.shape, dtype=dtype, device=layout.mask.device).masked_fill(
        ~layout.mask, torch.finfo(dtype).min
    )


def new_causal_lm(text_config: PreTrainedConfig) -> PreTrainedModel:
    """The language model of ``text_config`` with new weights.

    Raises:
        ValueError: transformers cannot build one of it.
    """
    with refusals_of("text_config"):
        return AutoModelForCausalLM.from_config(text_config)


def open_causal_lm(model_or_path, options: dict) -> tuple[PreTrainedModel, dict]:
    """(language model, fields of `NanoEBMConfig` among ``options``); a path or Hub id is loaded with the other options.

    Raises:
        TypeError: options that are no fields, together with a model.
    """
    fields = {name: value for name, value in options.items() if name in OWN_FIELDS}
    others = {name: value for name, value in options.items() if name not in OWN_FIELDS}
    if isinstance(model_or_path, str) or hasattr(model_or_path, "__fspath__"):
        return AutoModelForCausalLM.from_pretrained(model_or_path, **others), fields
    if others:
        raise TypeError(
            f"{sorted(others)} are no fields of NanoEBMConfig; known: {sorted(OWN_FIELDS - {'text_config'})}."
        )
    return model_or_path, fields


def check_causal_lm(lm) -> None:
    """Refuses what is no causal LM, or has logits that are more than its output embedding on the last states.

    Raises:
        TypeError, ValueError: as said.
    """
    if not isinstance(lm, PreTrainedModel) or lm.get_output_embeddings() is None:
        raise TypeError(
            f"attach_refinement needs a transformers causal language model or a path to one, got {type(lm).__name__}."
        )
    if not same_readout(lm):
        raise ValueError(
            f"{type(lm).__name__} changes its logits after the output embedding (a scale or a soft cap), which the energy does "
            "not know; attach to a model without."
        )
    if os.path.isdir(lm.config._name_or_path):  # saved with the config: a Hub id is worth keeping, a local path is not
        lm.config._name_or_path = ""


@torch.no_grad()
def same_readout(lm) -> bool:
    """Whether the LM's logits are its output embedding applied to the decoder's last states, tried on three tokens."""
    head = lm.get_output_embeddings()
    ids = torch.arange(3, device=head.weight.device).unsqueeze(0) % head.weight.shape[0]
    training = lm.training
    lm.eval()
    logits = lm(input_ids=ids, use_cache=False).logits
    states = lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    lm.train(training)
    return torch.allclose(logits, head(states), atol=1e-3, rtol=1e-3)
