"""MonArc: an autoregressive LM with a residual energy on every token, p(x) = p_LM(x) exp(-E(x)) / Z."""

import importlib


_EXPORTS = {  # name -> sibling module, imported at first use (PEP 562)
    "CandidateScores": "modeling_monarc",
    "MonArcConfig": "configuration_monarc",
    "MonArcForCausalLM": "modeling_monarc",
    "MonArcOutput": "modeling_monarc",
}
__all__ = list(_EXPORTS)


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted({*globals(), *_EXPORTS})
