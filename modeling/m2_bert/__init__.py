"""Monarch Mixer BERT: a bidirectional encoder of long convolutions and block-diagonal layers, 128 to 32k tokens."""

import importlib


_EXPORTS = {  # name -> sibling module, imported at first use (PEP 562)
    "M2BertConfig": "configuration_m2_bert",
    "M2BertForMaskedLM": "modeling_m2_bert",
    "M2BertForQuestionAnswering": "modeling_m2_bert",
    "M2BertForSentenceEmbedding": "modeling_m2_bert",
    "M2BertForSequenceClassification": "modeling_m2_bert",
    "M2BertForTokenClassification": "modeling_m2_bert",
    "M2BertModel": "modeling_m2_bert",
    "M2BertPreTrainedModel": "modeling_m2_bert",
    "extend_context": "context_extension",
}
__all__ = list(_EXPORTS)


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted({*globals(), *_EXPORTS})
