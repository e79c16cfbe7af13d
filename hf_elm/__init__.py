"""Energy-based language models for the Hugging Face ecosystem.

Importing this package registers every config and model with transformers' Auto classes, without importing torch or
transformers before they are needed (see ``registration``).
"""

import importlib
from pathlib import Path


__version__ = "0.1.0"

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "setup.py").is_file() and (
    _ROOT / "modeling"
).is_dir():  # a checkout: modeling/, trainers/, … lie beside us
    __path__.append(str(_ROOT))

from . import registration  # noqa: E402
from .trainers import card_writer  # noqa: E402


registration.install()
card_writer.writer = "hf_elm.card_files:write_trainer_card"

_EXPORTS = {  # name -> module that defines it, imported at first use (PEP 562)
    "M2BertConfig": "hf_elm.modeling.m2_bert",
    "M2BertForMaskedLM": "hf_elm.modeling.m2_bert",
    "M2BertForQuestionAnswering": "hf_elm.modeling.m2_bert",
    "M2BertForSentenceEmbedding": "hf_elm.modeling.m2_bert",
    "M2BertForSequenceClassification": "hf_elm.modeling.m2_bert",
    "M2BertForTokenClassification": "hf_elm.modeling.m2_bert",
    "M2BertModel": "hf_elm.modeling.m2_bert",
    "extend_context": "hf_elm.modeling.m2_bert",
    "MaskedLMConfig": "hf_elm.trainers",
    "MaskedLMTrainer": "hf_elm.trainers",
    "MonArcConfig": "hf_elm.modeling.monarc",
    "MonArcForCausalLM": "hf_elm.modeling.monarc",
    "NanoEBMConfig": "hf_elm.modeling.nano_ebm",
    "NanoEBMForRefinement": "hf_elm.modeling.nano_ebm",
    "attach_refinement": "hf_elm.modeling.nano_ebm",
    "embed_texts": "hf_elm.embedding",
    "ElmLikelihood": "hf_elm.evaluation",
    "RefinementConfig": "hf_elm.trainers",
    "RefinementTrainer": "hf_elm.trainers",
    "ResidualEnergyConfig": "hf_elm.trainers",
    "ResidualEnergyTrainer": "hf_elm.trainers",
    "evaluate_elm": "hf_elm.evaluation",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__():
    return sorted({*globals(), *_EXPORTS})
