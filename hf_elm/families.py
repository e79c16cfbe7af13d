"""The table of model families: everything that the command line and the Auto classes need to know about each.

A class or function is written ``"package.module:name"`` and imported by `resolve` at first use, so that reading this table
costs nothing.
"""

import importlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .adapter_folders import base_of_adapter, looks_like_hub_id


@dataclass(frozen=True)
class Family:
    """One family.

    Args:
        config: config class.
        models: model class -> names of the Auto classes that find it.
        model: the class that ``hf-elm train`` builds.
        trainer: Trainer subclass; None = ``hf-elm train`` refuses the family.
        training_arguments: TrainingArguments subclass; its fields are the ``train.*`` keys.
        converter: function ``(source, out)`` for reference checkpoints.
        vocabulary_in: config field that holds the vocabulary size ("text_config" or None for the config itself).
        adapt_recipe: the recipe that ``hf-elm adapt`` starts from.
        generation: class whose fields are the family's own ``hf-elm generate`` keys; None = it generates no text.
        residual_energy: tokens have a residual energy, so that `hf_elm.evaluation.evaluate_elm` measures the likelihood.
        evaluation: function behind ``hf-elm evaluate`` where there is no residual energy; its arguments are the keys.
        encoder: its tokenizer needs [CLS], [SEP] and [MASK].
        quickstart: class that tells the family's story on a small model; its arguments are the ``hf-elm quickstart`` keys.
        quickstart_keys: class whose fields are the family's own ``hf-elm quickstart`` keys.
        demo: function ``(checkpoint, device, dtype)`` that loads a model and gives the tabs of its ``hf-elm demo`` page; None =
            there is no page.
        pairs: it learns from pairs of queries and documents, so that the data section is `PairSection`.
        objectives: name of another thing to train -> the fields above that are different then.
        aliases: further spellings of keys, accepted everywhere.
    """

    config: str
    models: dict[str, tuple[str, ...]]
    model: str
    trainer: str | None
    training_arguments: str | None
    converter: str
    vocabulary_in: str | None = None
    adapt_recipe: str | None = None
    generation: str | None = None
    residual_energy: bool = True
    evaluation: str | None = None
    encoder: bool = False
    quickstart: str | None = None
    quickstart_keys: str | None = None
    demo: str | None = None
    pairs: bool = False
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


_MONARC = "hf_elm.modeling.monarc"
_NANO_EBM = "hf_elm.modeling.nano_ebm"
_M2_BERT = "hf_elm.modeling.m2_bert"
FAMILIES = {  # model_type -> family
    "monarc": Family(
        config=f"{_MONARC}.configuration_monarc:MonArcConfig",
        models={f"{_MONARC}.modeling_monarc:MonArcForCausalLM": ("AutoModel", "AutoModelForCausalLM")},
        model=f"{_MONARC}.modeling_monarc:MonArcForCausalLM",
        trainer="hf_elm.trainers.residual_energy_trainer:ResidualEnergyTrainer",
        training_arguments="hf_elm.trainers.residual_energy_config:ResidualEnergyConfig",
        converter=f"{_MONARC}.convert_monarc:convert_reference_checkpoint",
        vocabulary_in="text_config",
        adapt_recipe="monarc_adapt_frozen",
        generation="hf_elm.recipe_sections:CandidateSection",
        quickstart="hf_elm.quickstart:QuickstartRun",
        quickstart_keys="hf_elm.recipe_sections:MonArcQuickstartSection",
        demo="hf_elm.demo.monarc_tabs:load_tabs",
    ),
    "nano_ebm": Family(
        config=f"{_NANO_EBM}.configuration_nano_ebm:NanoEBMConfig",
        models={f"{_NANO_EBM}.modeling_nano_ebm:NanoEBMForRefinement": ("AutoModel", "AutoModelForCausalLM")},
        model=f"{_NANO_EBM}.modeling_nano_ebm:NanoEBMForRefinement",
        trainer="hf_elm.trainers.refinement_trainer:RefinementTrainer",
        training_arguments="hf_elm.trainers.refinement_config:RefinementConfig",
        converter=f"{_NANO_EBM}.convert_nano_ebm:convert_reference_checkpoint",
        generation="hf_elm.recipe_sections:ThinkingSection",
        evaluation="hf_elm.checkpoint_likelihood:evaluate_refinement_checkpoint",
        quickstart="hf_elm.refinement_quickstart:RefinementQuickstart",
        quickstart_keys="hf_elm.recipe_sections:NanoEBMQuickstartSection",
        demo="hf_elm.demo.nano_ebm_tabs:load_tabs",
        residual_energy=False,
        aliases={  # the original's spellings
            "model.n_layer": "model.num_hidden_layers",
            "model.n_head": "model.num_attention_heads",
            "model.n_embd": "model.hidden_size",
            "model.block_size": "model.max_position_embeddings",
            "model.bias": "model.use_bias",
            "model.refine_steps": "model.think_steps",
            "model.alpha_value": "model.think_lr",
            "model.energy_convergence_threshold": "model.think_tolerance",
            "data.data_path": "data.corpus",
            "data.batch_size": "train.per_device_train_batch_size",
            "train.warmup_steps_no_refine": "train.system_one_steps",
            "wandb_project": "train.wandb_project",
            "wandb_name": "train.run_name",
            "topk": "think_topk",
            "sample": "do_sample",
            "sample_temp": "temperature",
            "sample_top_p": "top_p",
        },
    ),
    "m2_bert": Family(
        config=f"{_M2_BERT}.configuration_m2_bert:M2BertConfig",
        models={
            f"{_M2_BERT}.modeling_m2_bert:M2BertModel": ("AutoModel",),
            f"{_M2_BERT}.modeling_m2_bert:M2BertForMaskedLM": ("AutoModelForMaskedLM",),
            f"{_M2_BERT}.modeling_m2_bert:M2BertForSequenceClassification": ("AutoModelForSequenceClassification",),
            f"{_M2_BERT}.modeling_m2_bert:M2BertForTokenClassification": ("AutoModelForTokenClassification",),
            f"{_M2_BERT}.modeling_m2_bert:M2BertForQuestionAnswering": ("AutoModelForQuestionAnswering",),
            f"{_M2_BERT}.modeling_m2_bert:M2BertForSentenceEmbedding": ("AutoModelForTextEncoding",),
        },
        model=f"{_M2_BERT}.modeling_m2_bert:M2BertForMaskedLM",
        trainer="hf_elm.trainers.masked_lm_trainer:MaskedLMTrainer",
        training_arguments="hf_elm.trainers.masked_lm_config:MaskedLMConfig",
        converter=f"{_M2_BERT}.convert_m2_bert:convert_reference_checkpoint",
        residual_energy=False,
        evaluation="hf_elm.masked_lm_evaluation:evaluate_masked_lm",
        demo="hf_elm.demo.m2_bert_tabs:load_tabs",
        encoder=True,
        objectives={
            "retrieval": {
                "model": f"{_M2_BERT}.modeling_m2_bert:M2BertForSentenceEmbedding",
                "trainer": "hf_elm.trainers.retrieval_trainer:RetrievalTrainer",
                "training_arguments": "hf_elm.trainers.retrieval_config:RetrievalConfig",
                "pairs": True,
            },
        },
        aliases={  # the original's spellings
            "model.long_conv_l_max": "model.max_position_embeddings",
            "model.hyena_w": "model.filter_freq",
            "model.hyena_w_mod": "model.filter_freq_scale",
            "model.hyena_emb_dim": "model.filter_emb_dim",
            "model.hyena_filter_order": "model.filter_order",
            "model.hyena_training_additions": "model.mixer_pre_norm",
            "model.use_glu_mlp": "model.mlp_gated",
            "model.monarch_mlp_nblocks": "model.mlp_num_blocks",
            "model.use_positional_encodings": "model.use_position_embeddings",
            "model.long_conv_kernel_learning_rate": "train.filter_learning_rate",
            "model.hyena_lr_pos_emb": "train.position_learning_rate",
            "model.hyena_wd": "train.filter_weight_decay",
            "max_seq_len": "data.sequence_length",
            "tokenizer_name": "tokenizer.path",
            "mlm_probability": "train.mlm_probability",
        },
    ),
}


def resolve(path: str) -> Any:
    """The object that ``"package.module:name"`` names."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def find_family(name: str, objective: str | None = None) -> Family:
    """The family called ``name``, as it is trained for ``objective`` (None: its own); dashes and underscores are the same."""
    try:
        family = FAMILIES[str(name).replace("-", "_")]  # a recipe may hold anything there
    except KeyError:
        raise ValueError(f'family must be one of {sorted(FAMILIES)}, got "{name}".') from None
    if objective is None:
        return family
    if not isinstance(objective, str) or objective not in family.objectives:
        choices = ", ".join(family.objectives) or "none beside its own"
        raise ValueError(f'objective="{objective}" is not one of family {name}: {choices}. Leave it out for its own.')
    return replace(family, **family.objectives[objective])


def family_of_checkpoint(checkpoint: str) -> str:
    """The family name (``model_type``) that a saved folder or Hub id declares in its config.json.

    Raises:
        FileNotFoundError: no such folder or Hub repository, or no config.json in it.
        ValueError: config.json is not readable, or the model is of no family of this package.
    """
    model_type = _read_config(checkpoint).get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f'checkpoint={checkpoint} holds a "{model_type}" model; this command needs one of {sorted(FAMILIES)}. '
            "An ordinary causal LM becomes one by `hf-elm adapt model.base=...`."
        )
    return model_type


def read_model_type(checkpoint: str) -> str | None:
    """The ``model_type`` that a saved folder or Hub id declares, of whatever library; None where it declares none.

    Raises:
        FileNotFoundError, ValueError: see `family_of_checkpoint`.
    """
    return _read_config(checkpoint).get("model_type")


def class_of_checkpoint(checkpoint: str) -> str:
    """``"package.module:name"`` of the class that was saved, by config.json; the class that the family trains where it says none.

    Raises:
        FileNotFoundError, ValueError: see `family_of_checkpoint`.
    """
    family = find_family(family_of_checkpoint(checkpoint))
    names = _read_config(checkpoint).get("architectures") or []
    return next((path for path in family.models if path.split(":")[1] in names), family.model)


def _read_config(checkpoint: str) -> dict[str, Any]:
    """The config.json of a saved folder or Hub id; of an adapter's folder, that of its base."""
    if (base := base_of_adapter(checkpoint)) is not None:
        return _read_config(base)
    folder = Path(checkpoint)
    file = folder / "config.json"
    if looks_like_hub_id(checkpoint):
        file = Path(_download_config(checkpoint))
    elif not folder.exists():
        raise FileNotFoundError(
            f"checkpoint={checkpoint} does not exist; give a saved folder or a Hub id (user/name)."
        )
    if not file.is_file():
        raise FileNotFoundError(
            f"checkpoint={checkpoint} has no config.json; give a folder that save_pretrained wrote."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint={checkpoint}: config.json is not a JSON object ({error}).") from None
    if not isinstance(config, dict):
        raise ValueError(f"checkpoint={checkpoint}: config.json is not a JSON object but a {type(config).__name__}.")
    return config


def _download_config(repo_id):
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return hf_hub_download(repo_id, "config.json")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"checkpoint={repo_id} is neither a folder nor a reachable Hub id: {reason}") from None
