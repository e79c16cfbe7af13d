"""nanoEBM: a small language model whose predictions are refined by descending a free energy."""

import importlib


_EXPORTS = {  # name -> sibling module, imported at first use (PEP 562)
    "NanoEBMConfig": "configuration_nano_ebm",
    "NanoEBMForRefinement": "modeling_nano_ebm",
    "NanoEBMOutput": "modeling_nano_ebm",
    "attach_refinement": "modeling_nano_ebm",
}
__all__ = list(_EXPORTS)


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted({*globals(), *_EXPORTS})
