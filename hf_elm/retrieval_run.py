"""What a training run for retrieval does otherwise: the model it starts from, and the ranking that it ends with."""

import os
import sys
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from . import run_folder
from .families import find_family, resolve
from .retrieval_evaluation import evaluate_retrieval
from .retrieval_tasks import task_of_pairs
from .saved_models import load_weights
from .trainers.peft_adapters import base_model


logger = logging.get_logger(__name__)
_POOLER = "m2_bert.pooler."


def load_model_to_embed(checkpoint: str, **fields: Any) -> PreTrainedModel:
    """The saved encoder, any head of it, as a model of sentence embeddings; a pooler that was never trained is new.

    Raises:
        FileNotFoundError, ValueError: nothing there, another kind of model, damaged or missing weights.
    """
    model_class = resolve(find_family("m2_bert", "retrieval").model)
    model, missing = load_weights(model_class, checkpoint, **fields)
    if lost := [name for name in missing if not name.startswith(_POOLER)]:
        raise ValueError(f"checkpoint={checkpoint} is incomplete: {len(lost)} weights are missing, {lost[0]} first.")
    if missing:
        logger.warning(f"checkpoint={checkpoint} was not trained to embed: its pooler starts from random weights.")
    return model


def final_retrieval(run) -> dict[str, Any]:
    """Ranks the held-out documents of a `TrainingRun` by its model and by BM25; written and printed."""
    model = base_model(run.trainer.accelerator.unwrap_model(run.trainer.model)).eval()
    arguments = run.trainer.args
    result = evaluate_retrieval(
        model,
        run.tokenizer,
        task_of_pairs(run.corpus.held_out, f"{run.corpus.name}, held out"),
        name=os.path.basename(os.path.abspath(run.output_dir)),
        query_prompt=arguments.query_prompt,
        document_prompt=arguments.document_prompt,
        max_length=arguments.max_length,
    )
    result.to_json(os.path.join(run.output_dir, run_folder.RETRIEVAL))
    sys.stdout.write(f"{result}\n")
    return result.to_dict()
