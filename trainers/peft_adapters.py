"""PEFT adapters around our models: which layers they reach, what is trained whole beside them, and what they must not contradict."""

import copy
from collections.abc import Sequence

from torch import nn


ALL_LINEAR = "all-linear"  # PEFT's own word


def base_model(model: nn.Module) -> nn.Module:
    """The model inside PEFT's wrapper, or ``model`` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def with_adapters(model: nn.Module, peft_config, whole: Sequence[str] = (), adapts_lm: bool = False) -> nn.Module:
    """``model`` inside a `PeftModel`, ready to train; its own layers are changed in place, ``peft_config`` is not.

    Args:
        peft_config: a PEFT configuration of layers (`LoraConfig`, …). ``target_modules=[]`` adapts no layer, so that
            ``modules_to_save`` alone is trained.
        whole: modules that are trained in full and saved with the adapter when ``modules_to_save`` is None; those that
            ``target_modules`` reaches into are adapted instead.
        adapts_lm: the language model inside is to be trained too.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: ``peft_config`` is no configuration of PEFT, or one of prompts.
        ValueError: ``model`` has adapters already, a name matches no module, a frozen LM would be trained, or with
            ``adapts_lm`` none of the LM would.
    """
    peft = _peft()
    if not isinstance(peft_config, peft.PeftConfig) or peft_config.is_prompt_learning:
        raise TypeError(
            f"peft_config must adapt layers, as peft.LoraConfig does, got {type(peft_config).__name__}: energies and "
            "embeddings are of the text alone and know no virtual tokens."
        )
    if base_model(model) is not model:
        raise ValueError(
            "peft_config was given, but model has PEFT adapters already; leave peft_config out to train them."
        )
    peft_config = copy.deepcopy(peft_config)
    if peft_config.task_type is None and getattr(model, "can_generate", bool)():
        peft_config.task_type = "CAUSAL_LM"
    _fill_targets(model, peft_config, whole)
    try:
        adapted = peft.get_peft_model(model, peft_config)
    except ValueError as error:  # a layer of a kind that PEFT cannot adapt
        raise ValueError(
            f"peft_config: {error} {type(model).__name__} has the linear layers {_linear_layers(model)}."
        ) from error
    reason = _contradiction(model, adapts_lm)
    if reason:
        adapted.unload()  # the caller's model is as it was
        raise ValueError(reason)
    return adapted


def _contradiction(model, adapts_lm):
    """What is wrong with the weights of the language model inside ``model`` that will be trained; None: nothing."""
    lm = getattr(model, "lm", None)
    trained = [] if lm is None else [f"lm.{name}" for name, weight in lm.named_parameters() if weight.requires_grad]
    if getattr(model.config, "freeze_lm", False) and trained:
        return (
            f"freeze_lm=True, but peft_config would train {len(trained)} weights of the LM, {trained[0]} first; set "
            "freeze_lm=False, or target the energy only."
        )
    if adapts_lm and not trained:
        return "freeze_lm=False, but peft_config trains none of the LM's weights; leave freeze_lm out, or target layers of the LM."
    return None


def _fill_targets(model, peft_config, whole):
    """Completes ``target_modules`` and ``modules_to_save`` of ``peft_config``, and refuses names that match nothing."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.constants import DUMMY_TARGET_MODULES

    names = [name for name, _ in model.named_modules() if name]
    targets = getattr(peft_config, "target_modules", ALL_LINEAR)
    if targets is None:
        raise ValueError(
            f'peft_config.target_modules is None; give "{ALL_LINEAR}", or some of {_linear_layers(model)}.'
        )
    nothing = not targets
    if nothing:
        peft_config.target_modules = DUMMY_TARGET_MODULES
    by_name = not nothing and targets != ALL_LINEAR
    if hasattr(peft_config, "modules_to_save"):
        if peft_config.modules_to_save is None:
            reached = [name for name in names if by_name and check_target_module_exists(peft_config, name)]
            whole = [part for part in whole if not any(f".{part}." in f".{name}." for name in reached)]
            peft_config.modules_to_save = list(whole) or None
        for part in peft_config.modules_to_save or ():
            if not any(f".{name}".endswith(f".{part}") for name in names):
                raise ValueError(
                    f'peft_config.modules_to_save has "{part}", which is no module of {type(model).__name__}; it has '
                    f"{sorted({name.rsplit('.', 1)[-1] for name in names if not name[-1].isdigit()})}."
                )
    if nothing and not getattr(peft_config, "modules_to_save", None):
        raise ValueError("peft_config would train nothing: target_modules is empty, and so is modules_to_save.")
    if by_name:
        _require_matches(model, peft_config, names, check_target_module_exists)


def _require_matches(model, peft_config, names, matches):
    """Every name of ``target_modules`` must reach a module: PEFT passes over misspelt ones where another one matches."""
    targets = peft_config.target_modules
    for target in [targets] if isinstance(targets, str) else sorted(targets):
        alone = copy.copy(peft_config)
        alone.target_modules = target if isinstance(targets, str) else {target}
        if not any(matches(alone, name) for name in names):
            whole = list(getattr(peft_config, "modules_to_save", None) or ())
            but = f", without those in modules_to_save={whole}" if whole else ""
            raise ValueError(
                f'peft_config.target_modules "{target}" matches no module of {type(model).__name__}; its linear layers are '
                f"{_linear_layers(model)}{but}."
            )


def _linear_layers(model):
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)})


def _peft():
    try:
        import peft
    except ImportError as error:
        raise ImportError('peft_config needs the package peft: pip install "hf_elm[train]".') from error
    return peft
