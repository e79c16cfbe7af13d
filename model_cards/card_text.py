"""Card facts to the text of a README.md: metadata for the Hub, and the family's template with sections made from the facts.

A sentence is there because a file says so: what is unknown is left out. The end of a card carries a digest of its text, by
which a card that nobody has edited is told from one that is the user's.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .card_facts import CURVES, CardFacts
from .measurements import Measurement, likelihood_measurements, likelihood_method


TITLES = {"monarc": "MonArc", "nano_ebm": "nanoEBM", "m2_bert": "Monarch Mixer BERT"}
TAGS = {
    "monarc": ["energy-based-model", "monarc"],
    "nano_ebm": ["energy-based-model", "nano_ebm"],
    "m2_bert": ["monarch-mixer", "long-convolution", "m2_bert"],
}
PIPELINES = {  # the class that was saved -> pipeline_tag, Auto class
    "MonArcForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "NanoEBMForRefinement": ("text-generation", "AutoModelForCausalLM"),
    "M2BertModel": ("feature-extraction", "AutoModel"),
    "M2BertForMaskedLM": ("fill-mask", "AutoModelForMaskedLM"),
    "M2BertForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "M2BertForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "M2BertForQuestionAnswering": ("question-answering", "AutoModelForQuestionAnswering"),
    "M2BertForSentenceEmbedding": ("sentence-similarity", "AutoModelForTextEncoding"),
}
_MARK = "<!-- written by hf_elm; sha256 {} -->"
_SETTINGS = {  # of the recipe's train section, in words
    "max_steps": "optimizer steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "rows per device and step",
    "gradient_accumulation_steps": "gradient accumulation steps",
    "learning_rate": "peak learning rate",
    "energy_learning_rate": "peak learning rate of the energy",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warm-up steps",
    "weight_decay": "weight decay",
    "max_grad_norm": "gradient norm clipped at",
    "energy_loss": "energy loss",
    "energy_loss_weight": "weight of the energy loss",
    "num_negatives": "negatives per position",
    "freeze_lm": "LM frozen",
    "system_one_steps": "steps without thinking at the start",
    "mlm_probability": "share of masked tokens",
    "retrieval_loss": "loss",
    "bf16": "bfloat16",
    "fp16": "float16",
}


def model_card(facts: CardFacts) -> str:
    """The text of README.md, metadata included.

    Raises:
        ValueError: a model of no family of this package.
    """
    if facts.family not in TITLES:
        raise ValueError(f'a card needs a model of one of {sorted(TITLES)}, got model_type="{facts.family}".')
    template = Path(__file__).with_name(f"{facts.family}.md.jinja")
    card = ModelCard.from_template(
        card_data(facts),
        template_path=str(template),
        title=_title(facts),
        config=facts.config,
        backbone=_of_backbone(facts),
        load=load_section(facts),
        shape=_shape_table(facts),
        measured=_measured_section(facts),
        unmeasured=_unmeasured_list(facts),
        training=_training_section(facts),
    )
    return _stamped(str(card))


def card_data(facts: CardFacts) -> ModelCardData:
    """The metadata of the card."""
    pipeline = PIPELINES.get(facts.architecture or "", (None, None))[0]
    tags = [*TAGS[facts.family], "custom_code", *(["sentence-transformers"] if facts.sentence_transformers else [])]
    if facts.adapter:
        tags += ["adapter", str(facts.adapter.get("peft_type", "")).lower()]
    results = _eval_results(facts, pipeline)
    library = "peft" if facts.adapter else "sentence-transformers" if facts.sentence_transformers else "transformers"
    return ModelCardData(
        library_name=library,
        pipeline_tag=pipeline,
        language=facts.language,
        license=facts.license,
        tags=list(dict.fromkeys(filter(None, [*tags, *facts.tags]))),
        base_model=facts.base_model,
        datasets=facts.datasets or None,
        model_name=_title(facts) if results else None,
        eval_results=results or None,
    )


def is_own_card(text: str) -> bool:
    """Whether ``text`` is a card that `model_card` wrote and nobody has edited since."""
    body, mark = _split_mark(text)
    return mark is not None and mark == _digest(body)


def with_repo_id(text: str, facts: CardFacts) -> str:
    """A card of ours with the title and the loading section of ``facts.repo_id``; all else stays as it is."""
    body, _ = _split_mark(text)
    card = ModelCard(body)
    if card.data.model_name is not None:
        card.data.model_name = _title(facts)
    card.text = re.sub(r"\A\s*# .*$", lambda _: f"\n# {_title(facts)}", card.text, count=1, flags=re.MULTILINE)
    section = re.compile(r"^## How to load\n.*?(?=^## )", flags=re.MULTILINE | re.DOTALL)
    card.text = section.sub(lambda _: f"{load_section(facts)}\n\n", card.text, count=1)
    if facts.license:
        card.data.license = facts.license
    return _stamped(str(card))


def _stamped(text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    body = re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"
    return f"{body}\n{_MARK.format(_digest(body))}\n"


def _digest(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()[:16]


def _split_mark(text: str) -> tuple[str, str | None]:
    text = text.replace("\r\n", "\n")
    pattern = re.escape(_MARK).replace(re.escape("{}"), "([0-9a-f]{16})")
    found = re.search(rf"\n{pattern}\s*\Z", text)
    return (text[: found.start()], found.group(1)) if found else (text, None)


def _title(facts: CardFacts) -> str:
    return facts.repo_id.split("/")[-1] if facts.repo_id else TITLES[facts.family]


def _of_backbone(facts: CardFacts) -> str | None:
    text_config = facts.config.get("text_config")
    return text_config.get("model_type") if isinstance(text_config, dict) else None


def load_section(facts: CardFacts) -> str:
    """How to load the model: with the code of a commit that one has read, or with the package installed."""
    if facts.adapter:
        return _load_adapter_section(facts)
    auto = PIPELINES.get(facts.architecture or "", (None, "AutoModel"))[1]
    place = facts.repo_id or "path/of/this/folder"
    pinned = ", revision=revision" if facts.repo_id else ""
    lines = ["## How to load", "", "```python"]
    if facts.repo_id:
        lines.append("from huggingface_hub import model_info")
    lines += [f"from transformers import AutoTokenizer, {auto}", ""]
    if facts.repo_id:
        lines.append(f'revision = model_info("{place}").sha  # read the code of that commit, then write its sha here')
    lines.append(f'model = {auto}.from_pretrained("{place}"{pinned}, trust_remote_code=True)')
    lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{place}"{pinned}, trust_remote_code=True)')
    if facts.sentence_transformers:
        lines += ["", "from sentence_transformers import SentenceTransformer", ""]
        lines.append(f'embedder = SentenceTransformer("{place}"{pinned}, trust_remote_code=True)')
    text = (
        "`trust_remote_code=True` runs the Python files of this repository on your machine: read them, and pin the `revision` "
        "that you read. They import nothing but PyTorch, transformers and the standard library, and the weights are safetensors, "
        "so that nothing is unpickled. With the package `hf_elm` imported, its own classes are used and no remote code is run."
    )
    return "\n".join([*lines, "```", "", text])


def _load_adapter_section(facts: CardFacts) -> str:
    """The base with the code of a commit that one has read, then the adapter, which brings no code."""
    auto = PIPELINES.get(facts.architecture or "", (None, "AutoModel"))[1]
    base = facts.adapter["base_model_name_or_path"]
    lines = ["## How to load", "", "```python", "from huggingface_hub import model_info", "from peft import PeftModel"]
    lines += [f"from transformers import AutoTokenizer, {auto}", ""]
    lines.append(f'revision = model_info("{base}").sha  # read the code of that commit, then write its sha here')
    lines.append(f'base = {auto}.from_pretrained("{base}", revision=revision, trust_remote_code=True)')
    lines.append(f'model = PeftModel.from_pretrained(base, "{facts.repo_id}")')
    lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{facts.repo_id}")')
    text = (
        "The adapter is safetensors and JSON and brings no code; `trust_remote_code=True` runs the Python files of its base on "
        "your machine: read them, and pin the `revision` that you read. `model.merge_and_unload()` puts the adapter into the "
        "base's weights."
    )
    return "\n".join([*lines, "```", "", text])


def _adapter_row(facts: CardFacts) -> str | None:
    if not facts.adapter:
        return None
    config = facts.adapter
    parts = [str(config.get("peft_type", "")), f"rank {config['r']}" if config.get("r") else ""]
    for words, name in (("on", "target_modules"), ("trained whole:", "modules_to_save")):
        modules = config.get(name)
        names = [modules] if isinstance(modules, str) else sorted(modules or [])
        parts.append(f"{words} {', '.join(names)}" if names else "")
    return "; ".join(filter(None, parts))


def _shape_table(facts: CardFacts) -> str:
    config = facts.config
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    sizes = {
        "adapter": _adapter_row(facts),
        "class": facts.architecture and f"`{facts.architecture}`",
        "weights stored": facts.parameters and f"{facts.parameters:,}",
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "backbone": _of_backbone(facts),
        "layers": inner.get("num_hidden_layers", inner.get("n_layer")),
        "hidden size": inner.get("hidden_size", inner.get("n_embd")),
        "vocabulary": inner.get("vocab_size"),
        "longest input": inner.get("max_position_embeddings", inner.get("n_positions")),
    }
    return _table(("", ""), [(name, value) for name, value in sizes.items() if value is not None])


def _measured_section(facts: CardFacts) -> str:
    found, parts = likelihood_measurements(facts), []
    if found:
        errors, bits = (
            any(getattr(m, name) is not None for m in found) for name in ("standard_error", "bits_per_byte")
        )
        header = ["", "value", "unit", *(["standard error"] if errors else []), *(["bits/byte"] if bits else [])]
        parts.append(_table(header, [_cells(each, errors, bits) for each in found]))
        parts.append(" ".join(likelihood_method(facts)))
    if facts.retrieval:
        parts.append(_retrieval_table(facts))
    return "\n\n".join(["## What was measured", *parts]) if parts else ""


def _cells(each: Measurement, errors: bool, bits: bool) -> list[str]:
    form = "+.4f" if each.gain else ".4f"
    cells = [each.label, format(round(each.value, 4) + 0.0, form), each.unit]  # + 0.0: no "-0.0000"
    if errors:
        cells.append("" if each.standard_error is None else f"{each.standard_error:.4f}")
    if bits:
        cells.append("" if each.bits_per_byte is None else f"{each.bits_per_byte:.4f}")
    return cells


def _retrieval_table(facts: CardFacts) -> str:
    metrics = list(dict.fromkeys(name for score in facts.retrieval for name in score.get("means", {})))
    rows = []
    for score in facts.retrieval:
        task = score["task"] if score.get("length") is None else f"{score['task']}, {score['length']} tokens"
        rows.append([score["retriever"], task, *(_percent(score, name) for name in metrics)])
    note = "In percent, ± one standard error over queries. BM25 is the reference that needs no model."
    return _table(["", "task", *metrics], rows) + f"\n\n{note}"


def _percent(score, name):
    error = score.get("standard_errors", {}).get(name)
    return f"{100 * score['means'][name]:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _unmeasured_list(facts: CardFacts) -> str:
    """What the records do not hold, so that nobody takes its absence for a good result."""
    record, items = facts.likelihood, []
    found = likelihood_measurements(facts)
    if not found and not facts.retrieval:
        items.append("No likelihood and no score of these weights is recorded.")
    elif facts.corpus_name and found:
        items.append("Text of other kinds than the training corpus was not scored.")
    if facts.family == "monarc" and found and record.get("equal_compute_lm_nll") is None:
        items.append(
            "No language model of the same compute was scored beside it: whether the energy pays is not known from here."
        )
    if facts.family == "nano_ebm" and found and record.get("equal_compute_gpt_nll") is None:
        items.append(
            "No plain GPT of the same compute was scored beside it: whether thinking pays is not known from here."
        )
    other = "other" if facts.retrieval else "downstream"
    items.append(f"The records hold no {other} task, and nothing on bias or safety.")
    return "\n".join(f"- {item}" for item in items)


def _training_section(facts: CardFacts) -> str:
    recipe, log, environment = facts.recipe, facts.last_log, facts.environment
    train = recipe.get("train") if isinstance(recipe.get("train"), dict) else {}
    rows: list[tuple[str, Any]] = [("data", facts.corpus_name), ("started from", _code(facts.base_model))]
    length = recipe.get("data", {}).get("sequence_length") if isinstance(recipe.get("data"), dict) else None
    rows += [("tokens per row", length), *((words, train.get(name)) for name, words in _SETTINGS.items())]
    rows += [
        ("seed", recipe.get("seed")),
        ("steps done", log.get("step")),
        ("target tokens seen", log.get("tokens_seen")),
    ]
    if isinstance(log.get("loss"), float):
        rows.append(("last training loss", f"{log['loss']:.4f}"))
    packages = environment.get("packages") or {}
    versions = [
        f"{name} {packages[name]}" for name in ("torch", "transformers", "accelerate", "peft") if name in packages
    ]
    own = f"hf_elm {environment['hf_elm']}" if environment.get("hf_elm") else None
    rows += [("software", ", ".join(filter(None, [own, *versions]))), ("commit of hf_elm", _commit(environment))]
    rows.append(("device", environment.get("device")))
    known = [(name, value) for name, value in rows if not (value is None or value is False or value == "")]
    if not known:
        return ""
    picture = f"\n\n![Metrics of the training by optimizer step]({CURVES})" if facts.curves else ""
    return f"## Training\n\n{_table(('', ''), known)}{picture}"


def _code(names):
    names = [names] if isinstance(names, str) else names or []
    return ", ".join(f"`{name}`" for name in names)


def _commit(environment):
    commit = environment.get("commit")
    return commit and f"`{commit.removesuffix('+changes')}`" + (" with changes" if commit.endswith("+changes") else "")


def _eval_results(facts: CardFacts, task: str | None) -> list[EvalResult]:
    """One per likelihood of this model, where the data is known; gains and other models are left to the text."""
    if facts.corpus_name is None or task is None:
        return []
    data = facts.datasets[0] if facts.datasets else "text"
    record, results = facts.likelihood, []
    how = {name: record[name] for name in ("method", "num_samples", "exact_top", "num_tokens") if record.get(name)}
    for each in likelihood_measurements(facts):
        if not (each.gain or each.of_another):
            error = {} if each.standard_error is None else {"standard_error": round(each.standard_error, 6)}
            results.append(
                EvalResult(
                    task_type=task,
                    dataset_type=data,
                    dataset_name=f"{facts.corpus_name}, held out",
                    metric_type=each.key,
                    metric_name=f"{each.label} ({each.unit})",
                    metric_value=round(each.value, 6),
                    metric_args=({**how, **error}) or None,
                )
            )
    return results


def _table(header, rows) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _escaped(cell) -> str:
    text = "yes" if cell is True else f"{cell:,}" if isinstance(cell, int) else str(cell)
    return " ".join(text.replace("|", "\\|").split())
