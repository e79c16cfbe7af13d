"""Makes a model ready for residual-energy training: load, wrap, configure, freeze."""

import os

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..modeling.monarc.configuration_monarc import MonArcConfig
from ..modeling.monarc.modeling_monarc import MonArcForCausalLM
from .peft_adapters import base_model
from .residual_energy_config import FIELDS_OF_THE_MODEL, ResidualEnergyConfig


def prepare_energy_model(model, args: ResidualEnergyConfig) -> nn.Module:
    """A `MonArcForCausalLM`, or the PEFT model of one, with the fields of ``args`` that concern the model.

    Args:
        model: a MonArc model, any transformers causal LM (wrapped, its modules are taken over), a PEFT model of a MonArc
            model, or a path or Hub id of a MonArc checkpoint or of a plain LM.

    Raises:
        TypeError: ``model`` is none of these.
    """
    if isinstance(model, (str, os.PathLike)):
        model = _load(str(model))
    base = base_model(model)
    if getattr(getattr(base, "config", None), "model_type", None) != MonArcConfig.model_type:
        if not isinstance(base, PreTrainedModel) or base is not model:
            raise TypeError(
                "model must be a MonArcForCausalLM, a transformers causal LM, a PEFT model of a MonArcForCausalLM, or a path or "
                f"Hub id, got {type(model).__name__} around {type(base).__name__}; attach PEFT adapters with peft_config=."
            )
        base = model = MonArcForCausalLM.from_causal_lm(model)
    for name in FIELDS_OF_THE_MODEL:
        if getattr(args, name) is not None:
            setattr(base.config, name, getattr(args, name))
    if args.freeze_lm is not None and base is model:
        base.config.freeze_lm = args.freeze_lm
        base.lm.requires_grad_(not args.freeze_lm)
    return model


def _load(path):
    config, _ = PreTrainedConfig.get_config_dict(path)
    if config.get("model_type") == MonArcConfig.model_type:
        return MonArcForCausalLM.from_pretrained(path)
    return MonArcForCausalLM.from_causal_lm(path)
