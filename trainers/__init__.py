"""How models learn: one config and trainer per objective, corpora, tokenizers, packing."""

import importlib


_EXPORTS = {  # name -> sibling module, imported at first use (PEP 562)
    "CheckpointSaveError": "checkpoint_folders",
    "Corpus": "corpora",
    "MaskRule": "token_masks",
    "MaskedLMConfig": "masked_lm_config",
    "MaskedLMTrainer": "masked_lm_trainer",
    "NonFiniteError": "finite_guard",
    "PackedRows": "packing",
    "PackingCollator": "packing",
    "PairCorpus": "pair_corpora",
    "RefinementConfig": "refinement_config",
    "RefinementTrainer": "refinement_trainer",
    "ResidualEnergyConfig": "residual_energy_config",
    "ResidualEnergyTrainer": "residual_energy_trainer",
    "RetrievalConfig": "retrieval_config",
    "RetrievalPairs": "retrieval_pairs",
    "RetrievalTrainer": "retrieval_trainer",
    "RowPacker": "row_packer",
    "TokenTrainer": "token_trainer",
    "build_tokenizer": "tokenization",
    "iter_packed_rows": "packing",
    "load_corpus": "corpora",
    "load_pairs": "pair_corpora",
    "pack_rows": "packing",
    "tokenize_corpus": "tokenization",
    "unknown_characters": "character_coverage",
}
__all__ = list(_EXPORTS)


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("accelerate", "datasets"):
            raise
        remedy = f'{name} needs the package {error.name}: pip install "hf_elm[train]".'
        raise ModuleNotFoundError(remedy, name=error.name) from error


def __dir__():
    return sorted({*globals(), *_EXPORTS})
