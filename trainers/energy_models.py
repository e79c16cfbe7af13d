"""Makes a model ready for residual-energy training: load, wrap, configure, freeze, attach PEFT adapters."""

import copy
import os

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..modeling.monarc.configuration_monarc import MonArcConfig
from ..modeling.monarc.modeling_monarc import MonArcForCausalLM
from .residual_energy_config import FIELDS_OF_THE_MODEL, ResidualEnergyConfig


def prepare_energy_model(model, args: ResidualEnergyConfig, peft_config=None) -> nn.Module:
    """A `MonArcForCausalLM` (inside a `PeftModel` with ``peft_config``) with the fields of ``args`` that concern the model.

    Args:
        model: a MonArc model, any transformers causal LM (wrapped, its modules are taken over), a PEFT model of a MonArc
            model, or a path or Hub id of a MonArc checkpoint or of a plain LM.
        peft_config: a PEFT configuration; the energy head is trained in full and saved with the adapter, unless its
            ``modules_to_save`` says otherwise.

    Raises:
        TypeError: ``model`` is none of these.
        ValueError: ``peft_config`` beside an energy adapter, or beside a frozen LM that it would train.
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
    if peft_config is not None:
        model = _with_adapters(model, peft_config)
    return model


def base_model(model: nn.Module) -> nn.Module:
    """The model inside PEFT's wrapper, or ``model`` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _load(path):
    config, _ = PreTrainedConfig.get_config_dict(path)
    if config.get("model_type") == MonArcConfig.model_type:
        return MonArcForCausalLM.from_pretrained(path)
    return MonArcForCausalLM.from_causal_lm(path)


def _with_adapters(model, peft_config):
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise ImportError('peft_config needs the package peft: pip install "hf_elm[train]".') from error
    if model.energy_adapter is not None:
        raise ValueError(
            f"peft_config together with config.energy_adapter_rank={model.config.energy_adapter_rank}: PEFT would train copies of "
            "the energy adapter that the LM's layers do not use. Set energy_adapter_rank=0, or train the two one after the other."
        )
    peft_config = copy.deepcopy(peft_config)
    peft_config.task_type = peft_config.task_type or "CAUSAL_LM"
    if getattr(peft_config, "modules_to_save", ()) is None:
        peft_config.modules_to_save = ["energy_head"]
    adapted = get_peft_model(model, peft_config)
    trained = [name for name, p in model.lm.named_parameters() if p.requires_grad]
    if model.config.freeze_lm and trained:
        raise ValueError(
            f"freeze_lm=True, but peft_config would train {len(trained)} weights of the LM, {trained[0]} first; set "
            "freeze_lm=False, or target the energy head only."
        )
    return adapted
