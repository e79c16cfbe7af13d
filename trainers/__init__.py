"""How models learn: one config and trainer per objective, corpora, tokenizers, packing."""

import importlib


_EXPORTS = {  # name -> sibling module, imported at first use (PEP 562)
    "Corpus": "corpora",
    "PackingCollator": "packing",
    "ResidualEnergyConfig": "residual_energy_config",
    "ResidualEnergyTrainer": "residual_energy_trainer",
    "build_tokenizer": "tokenization",
    "load_corpus": "corpora",
    "pack_rows": "packing",
}
__all__ = list(_EXPORTS)


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted({*globals(), *_EXPORTS})
