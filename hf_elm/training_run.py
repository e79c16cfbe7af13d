"""One training run from resolved settings: corpus, tokenizer, model, trainer, likelihood, files."""

import contextlib
import dataclasses
import inspect
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import run_folder
from .adapter_folders import keep_base, lora_config
from .environment import describe_environment
from .evaluation import evaluate_elm
from .families import Family, find_family, resolve
from .prepared_settings import prepared_tokenizer
from .quantized_weights import quantization_config
from .recipe_sections import DataSection
from .retrieval_evaluation import require_bm25
from .retrieval_run import final_retrieval, load_model_to_embed
from .saved_models import load_model
from .trainers.checkpoint_folders import last_usable_checkpoint
from .trainers.corpora import Corpus, load_corpus
from .trainers.pair_corpora import PairCorpus, load_pairs
from .trainers.peft_adapters import base_model
from .trainers.prepared_rows import PreparedCorpus
from .trainers.tokenization import build_tokenizer


SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass
class TrainingRun:
    """What a run is made of; `prepare` builds it, `execute` runs it."""

    settings: dict[str, Any]
    output_dir: str
    corpus: Corpus | PairCorpus
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    trainer: Any


def prepare(settings: dict[str, Any]) -> TrainingRun:
    """Build everything that ``settings`` names; nothing is written yet.

    Args:
        settings: nested, as `recipes.merge` gives, with the sections ``model``, ``tokenizer``, ``data``, ``train``.

    Raises:
        ValueError, FileNotFoundError: a setting that cannot be honoured; the message names it.
    """
    family = trained_family(settings)
    arguments = _training_arguments(family, settings)
    if family.pairs and not settings["evaluate"]["skip"]:
        require_bm25()  # now, not when the training is done
    load = load_pairs if family.pairs else load_corpus
    corpus = load(**corpus_options(settings["data"], load), seed=settings["seed"])
    tokenizer = make_tokenizer(settings, corpus)
    model = make_model(family, settings, tokenizer)
    adapters = {"peft_config": lora_config(settings["peft"])} if "peft" in settings else {}
    with _refusals_of("train settings"):
        trainer = resolve(family.trainer)(
            model=model,
            args=arguments,
            train_dataset=corpus.train,
            eval_dataset=corpus.held_out,
            processing_class=tokenizer,
            **adapters,
        )
    return TrainingRun(settings, arguments.output_dir, corpus, tokenizer, model, trainer)


@contextlib.contextmanager
def _refusals_of(section):
    """What transformers refuses becomes an error of ours that names the section of the recipe."""
    try:
        yield
    except (ValueError, TypeError, ImportError, ConnectionError) as error:
        raise ValueError(f"{section}: {error}") from error


def execute(run: TrainingRun) -> dict[str, Any] | None:
    """Train (from the last checkpoint where the settings say so), save, evaluate; the likelihood, if there is one."""
    resume = bool(run.settings.get("resume")) and last_usable_checkpoint(run.output_dir) is not None
    if run_folder.is_main_process():
        run_folder.write_atomically(
            os.path.join(run.output_dir, run_folder.RECIPE), run_folder.dump_recipe(run.settings)
        )
        run_folder.write_json(os.path.join(run.output_dir, run_folder.ENVIRONMENT), describe_environment())
    if "peft" in run.settings:
        keep_base(run.trainer.model, run.settings, run.output_dir)
    run.trainer.train(resume_from_checkpoint=True if resume else None)
    run.trainer.save_state()
    run.trainer.save_model()
    result = _final_evaluation(run)
    if run.trainer.args.push_to_hub:  # the push at the end of training came before the results
        run.trainer.push_to_hub(commit_message="Evaluation results")
    return result


def _final_evaluation(run):
    """The likelihood or ranking that ends a run, written and printed; None where it is to be skipped."""
    options = dict(run.settings["evaluate"])
    if options.pop("skip"):
        return None
    family = trained_family(run.settings)
    if family.pairs:
        return final_retrieval(run) if run_folder.is_main_process() else None
    if not family.residual_energy:
        return _held_out_metrics(run)
    return _likelihood(run, options) if run_folder.is_main_process() else None


def _held_out_metrics(run):
    """The trainer's own evaluation on the held-out rows, written and printed; collective over ranks."""
    metrics = run.trainer.evaluate()
    if run_folder.is_main_process():
        run_folder.write_json(os.path.join(run.output_dir, run_folder.LIKELIHOOD), metrics)
        width = max(map(len, metrics))
        sys.stdout.write("".join(f"{name:<{width}}  {value:.4f}\n" for name, value in metrics.items()))
    return metrics


def _likelihood(run, options):
    model = _whole_model(run).eval()
    result = evaluate_elm(
        model, run.trainer.eval_dataset, tokenizer=run.tokenizer, seed=run.settings["seed"], **options
    )
    run_folder.write_json(os.path.join(run.output_dir, run_folder.LIKELIHOOD), result.to_dict())
    sys.stdout.write(f"{result}\n")
    return result.to_dict()


def _whole_model(run):
    """The trained model for one process alone: where its weights are sharded over processes, the one that was just saved."""
    model = base_model(run.trainer.accelerator.unwrap_model(run.trainer.model))
    if any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in model.parameters()):  # FSDP2, ZeRO-3
        return base_model(load_model(run.output_dir).to(run.trainer.args.device))
    return model


def trained_family(settings: dict[str, Any]) -> Family:
    """The family of a run, as it is trained for the run's objective."""
    return find_family(settings["family"], settings.get("objective"))


def corpus_options(data: dict[str, Any], load=load_corpus) -> dict[str, Any]:
    """The arguments of `load_corpus`, or of another ``load``, in the data section of a recipe."""
    names = set(inspect.signature(load).parameters)
    return {"source": data["corpus"], **{name: value for name, value in data.items() if name in names}}


def _training_arguments(family, settings):
    """The TrainingArguments of the run; what the data section decides is passed on."""
    data, train = settings["data"], settings["train"]
    shared = {
        "max_length": data["sequence_length"],
        "packing_strategy": data.get("strategy"),
        "reset_position_ids": data.get("reset_position_ids"),
        "seed": settings["seed"],
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    for name, value in (("seed", settings["seed"]), ("train.data_seed", train.get("data_seed"))):
        if value is not None and not 0 <= value < 2**32:
            raise ValueError(f"{name} must be zero or positive and below 2**32, got {value!r}.")
    arguments = resolve(family.training_arguments)
    known = {item.name for item in dataclasses.fields(arguments)}
    for name, key in (("packing_strategy", "strategy"), ("reset_position_ids", "reset_position_ids")):
        if name not in known and key in data and data[key] != getattr(DataSection, key):
            raise ValueError(
                f"data.{key}={data[key]} says how documents share a row, but a row of this family holds one document or a piece "
                "of one; leave it out."
            )
    with _refusals_of("train settings"):
        return arguments(**{name: value for name, value in shared.items() if name in known} | train)


def make_tokenizer(settings: dict[str, Any], corpus: Corpus) -> PreTrainedTokenizerBase:
    """The tokenizer of the ``tokenizer`` section; by default that of the model to start from, else bytes.

    Prepared rows bring theirs. For an encoder it has [CLS], [SEP], [MASK] and [PAD].

    Raises:
        ValueError: kind and path contradict each other, or the tokenizer cannot be loaded; see also `prepared_tokenizer`.
    """
    if isinstance(corpus, PreparedCorpus):
        return prepared_tokenizer(settings, corpus)
    options, model, encoder = settings["tokenizer"], settings["model"], find_family(settings["family"]).encoder
    kind, path = options["kind"], options["path"]
    if kind not in (None, "byte", "char", "bpe", "pretrained"):
        raise ValueError(f'tokenizer.kind must be one of byte, char, bpe, pretrained, got "{kind}".')
    if path is not None and kind not in (None, "pretrained"):
        raise ValueError(f"tokenizer.kind={kind} takes no tokenizer.path={path}; drop one of them.")
    sources = {"tokenizer.path": path, "model.base": model.get("base"), "model.checkpoint": model.get("checkpoint")}
    if kind in (None, "pretrained"):
        for option, value in sources.items():
            if value is not None:
                return _pretrained_tokenizer(option, value, encoder)
    if kind == "pretrained":
        raise ValueError("tokenizer.kind=pretrained needs tokenizer.path=<folder or Hub id>.")
    texts = corpus.train.texts() if isinstance(corpus, PairCorpus) else corpus.train
    texts = texts if kind in ("char", "bpe") else None
    return build_tokenizer(kind or "byte", texts, options["vocab_size"], encoder=encoder)


def _pretrained_tokenizer(option, path, encoder):
    try:
        return build_tokenizer(path, encoder=encoder)
    except ValueError as error:
        raise ValueError(f"{option}={path} has no tokenizer that can be loaded: {error}") from error


def make_model(family: Family, settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of the ``model`` section: new (preset or fields), around an existing LM (base), or a saved one (checkpoint).

    Raises:
        ValueError: more than one source, a vocabulary or a number of positions too small for the data.
    """
    fields = dict(settings["model"])
    sources = {name: fields.pop(name, None) for name in ("preset", "base", "checkpoint")}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"model.{given[0]} and model.{given[1]} exclude each other; give one of preset, base, checkpoint."
        )
    torch.manual_seed(settings["seed"])
    length = settings["data"]["sequence_length"]
    if (kind := fields.pop("quantization", None)) is not None:
        if sources["base"] is None or "peft" not in settings:
            raise ValueError(
                f"model.quantization={kind} needs model.base, whose weights are quantised, and an adapter to train beside them: "
                "peft.target_modules=[] trains the energy alone, peft.r=8 the LM too."
            )
        fields["quantization_config"] = quantization_config(kind)
    if sources["base"] is not None:
        model = _wrap(family, sources["base"], fields)
    elif sources["checkpoint"] is not None:
        load = load_model_to_embed if family.pairs else load_model
        model = load(sources["checkpoint"], **fields)
    else:
        with _refusals_of("model settings"):
            model = resolve(family.model)(_new_config(family, sources["preset"], fields, tokenizer, length))
    _check_fit(model, tokenizer, length)
    return model


def _wrap(family, base, fields):
    model_class = resolve(family.model)
    if not hasattr(model_class, "from_causal_lm"):
        raise ValueError(f"model.base={base}: {model_class.__name__} cannot wrap a causal LM; use model.preset.")
    try:
        return model_class.from_causal_lm(base, **fields)
    except OSError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"model.base={base} cannot be loaded as a causal LM: {reason}") from error


def _new_config(family, preset, fields, tokenizer, length):
    """A new config whose vocabulary is the tokenizer's, and which has at least ``length`` positions, unless told otherwise."""
    config_class = resolve(family.config)
    inner = dict(fields.pop(family.vocabulary_in, None) or {}) if family.vocabulary_in else fields
    if inner.setdefault("vocab_size", len(tokenizer)) < len(tokenizer):
        raise ValueError(
            f"vocab_size={inner['vocab_size']} in the model section is smaller than the tokenizer's {len(tokenizer)}; leave it out."
        )
    for name in SPECIAL_TOKENS:
        inner.setdefault(name, getattr(tokenizer, name))
    stretch = "max_position_embeddings" not in inner
    if preset is not None:
        config = config_class.preset(preset, **fields, **(inner if family.vocabulary_in else {}))
    else:
        config = config_class(**(fields | {family.vocabulary_in: inner} if family.vocabulary_in else fields))
    text_config = config.get_text_config()
    if stretch and (getattr(text_config, "max_position_embeddings", None) or length) < length:
        text_config.max_position_embeddings = length
    return config


def _check_fit(model, tokenizer, length):
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model only {vocabulary}; "
            "use the model's own tokenizer (leave the tokenizer section out) or a larger vocab_size."
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(f"data.sequence_length={length} exceeds the model's {positions} positions; lower it.")
