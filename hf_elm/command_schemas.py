"""The valid keys of each command that takes ``key=value`` arguments."""

from .choice_sections import choice_keys
from .families import FAMILIES, find_family
from .recipe_keys import Key, Schema, section


_SECTIONS = "hf_elm.recipe_sections"
_EVALUATION = "hf_elm.evaluation:evaluate_elm"
_EMBEDDING = "hf_elm.embedding:embed_texts"
_NOT_OPTIONS = {"model", "data", "tokenizer", "bytes_per_token", "equal_compute_lm", "seed"}  # of evaluate_elm
_NOT_RETRIEVAL_KEYS = {"model", "tokenizer", "tasks", "name", "pooling", "pool_with_dense"}  # of evaluate_retrieval

PLAIN_LM = "plain"  # in the place of a family: any other causal LM
DATA_TWINS = {  # fields of the training arguments that the data section sets
    "text_column": "data.text_column",
    "max_length": "data.sequence_length",
    "packing_strategy": "data.strategy",
    "reset_position_ids": "data.reset_position_ids",
}
_SET_BY_US = {"packing", "metrics_file", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", *DATA_TWINS}
ALIASES = {
    "output_dir": "train.output_dir",
    "train.compile": "train.torch_compile",
    "train.lr": "train.learning_rate",
    "train.batch_size": "train.per_device_train_batch_size",
    "data.block_size": "data.sequence_length",
    "model.pretrained": "model.base",
    **{f"train.{twin}": key for twin, key in DATA_TWINS.items()},
}


def training_schema(family: str = "monarc", objective: str | None = None) -> Schema:
    """Keys of ``train`` and ``adapt``.

    Raises:
        ValueError: an unknown family or objective, or a family without a trainer.
    """
    found = find_family(family, objective)
    if found.trainer is None:
        trained = ", ".join(name for name, other in FAMILIES.items() if other.trainer)
        raise ValueError(
            f"family={family} has no trainer here; the families that train are {trained}. Its models are ordinary transformers "
            "models: load them by an Auto class and use transformers' Trainer."
        )
    own = section(found.training_arguments, "train.", "train (the trainer's own keys)", exclude=_SET_BY_US)
    names = {key.name for key in own}
    evaluation = "evaluate (held-out likelihood after training)"
    inherited = section(
        "transformers.training_args:TrainingArguments",
        "train.",
        "+train (transformers' TrainingArguments)",
        exclude=_SET_BY_US,
    )
    return Schema(
        [
            *section(f"{_SECTIONS}:RunSection", "", "run"),
            *section(f"{_SECTIONS}:ModelSource", "model.", "model"),
            *section(found.config, "model.", "model"),
            *section(f"{_SECTIONS}:TokenizerSection", "tokenizer.", "tokenizer"),
            *section(f"{_SECTIONS}:{'PairSection' if found.pairs else 'DataSection'}", "data.", "data"),
            Key(
                "train.output_dir", "str | None", "runs/<recipe>", "folder of the run; also written output_dir.", "run"
            ),
            *own,
            *(key for key in inherited if key.name not in names and key.name != "train.output_dir"),
            *section(
                f"{_SECTIONS}:PeftSection",
                "peft.",
                "peft (adapters in the place of the weights; any key turns them on)",
            ),
            *section(f"{_SECTIONS}:FinalEvaluationSection", "evaluate.", evaluation),
            *(section(_EVALUATION, "evaluate.", evaluation, exclude=_NOT_OPTIONS) if found.residual_energy else ()),
        ],
        ALIASES | found.aliases,
    )


def preparation_schema() -> Schema:
    """Keys of ``prepare``."""
    return Schema(
        [
            *section(f"{_SECTIONS}:PrepareSection", "", "prepare"),
            *section(f"{_SECTIONS}:TokenizerSection", "tokenizer.", "tokenizer"),
            *section(f"{_SECTIONS}:DataSection", "data.", "data", exclude={"streaming"}),
        ],
        {"data.block_size": "data.sequence_length", "corpus": "data.corpus"},
    )


def evaluation_schema() -> Schema:
    """Keys of ``evaluate``."""
    return Schema(
        [
            *section(f"{_SECTIONS}:CheckpointSection", "", "model"),
            *section(f"{_SECTIONS}:EvaluateSection", "", "evaluation"),
            *section(_EVALUATION, "", "evaluation", exclude=_NOT_OPTIONS),
            *section(f"{_SECTIONS}:DataSection", "data.", "data (missing: as in the run that wrote the checkpoint)"),
        ],
        {"data.block_size": "data.sequence_length"},
    )


def task_schema() -> Schema:
    """Keys of ``eval``."""
    keys = [
        *section(f"{_SECTIONS}:CheckpointSection", "", "model"),
        *section("hf_elm.evaluation_sections:TaskSection", "", "tasks"),
    ]
    return Schema(keys, {"model": "checkpoint", "pretrained": "checkpoint", "output_path": "output"})


def comparison_schema() -> Schema:
    """Keys of ``compare``."""
    heading = "data (missing: as in the run that wrote the first model)"
    names = {"corpus", "config_name", "split", "text_column", "streaming", "held_out_fraction", "max_bytes"}
    data = [key for key in section(f"{_SECTIONS}:DataSection", "data.", heading) if key.name.split(".")[1] in names]
    own = section("hf_elm.evaluation_sections:CompareSection", "", "comparison")
    return Schema([*own, *data], {"corpus": "data.corpus"})


def generation_schema(family: str | None = None) -> Schema:
    """Keys of ``generate``; those of every family when it is not known yet, of no family for `PLAIN_LM`.

    Raises:
        ValueError: a family that generates no text.
    """
    families = list(FAMILIES.values()) if family is None else []
    if family not in (None, PLAIN_LM):
        families = [find_family(family)]
    if len(families) == 1 and families[0].generation is None:
        raise ValueError(f"the checkpoint is a {family} model, an encoder that generates no text.")
    keys = [
        *section(f"{_SECTIONS}:CheckpointSection", "", "model"),
        *section(f"{_SECTIONS}:GenerateSection", "", "generation"),
        *choice_keys(),
    ]
    aliases: dict[str, str] = {"choose_from": "num_samples"}
    for found in families:
        keys += section(found.generation, "", "generation") if found.generation else []
        aliases |= {alias: key for alias, key in found.aliases.items() if "." not in key}
    return Schema(keys, aliases)


def embedding_schema() -> Schema:
    """Keys of ``embed``."""
    return Schema(
        [
            *section(f"{_SECTIONS}:CheckpointSection", "", "model", exclude={"seed"}),
            *section(f"{_SECTIONS}:EmbedSection", "", "texts and vectors"),
            *section(_EMBEDDING, "", "embedding", exclude={"model", "tokenizer", "texts", "progress"}),
        ]
    )


def retrieval_schema() -> Schema:
    """Keys of ``retrieve``."""
    return Schema(
        [
            *section(f"{_SECTIONS}:CheckpointSection", "", "model"),
            *section(f"{_SECTIONS}:RetrieveSection", "", "task"),
            *section("hf_elm.long_context_sections:LongerRowsSection", "", "longer rows"),
            *section("hf_elm.retrieval_evaluation:evaluate_retrieval", "", "embedding", exclude=_NOT_RETRIEVAL_KEYS),
        ]
    )


def export_schema() -> Schema:
    """Keys of ``export``."""
    return Schema(section(f"{_SECTIONS}:ExportSection", "", "export"))


def publish_schema() -> Schema:
    """Keys of ``publish``."""
    return Schema(section(f"{_SECTIONS}:PublishSection", "", "publish"))


def demo_schema() -> Schema:
    """Keys of ``demo``."""
    keys = section(f"{_SECTIONS}:CheckpointSection", "", "model", exclude={"seed"})
    return Schema([*keys, *section("hf_elm.demo_sections:DemoSection", "", "page")], {"model": "checkpoint"})


_THINKING_KINDS = ("landscape", "trajectory", "tokens", "gain", "positions", "animate")
_ENERGY_KINDS = ("energies", "heatmap", "calibration")
PLOT_KINDS = (*_THINKING_KINDS, *_ENERGY_KINDS, "training")
PLOT_FAMILIES = dict.fromkeys(_THINKING_KINDS, "nano_ebm") | dict.fromkeys(_ENERGY_KINDS, "monarc")
PLOTS_OF_CORPORA = ("gain", "energies", "calibration")
_OF_PROMPTS = ("landscape", "trajectory", "tokens", "positions", "animate")
_PLOTS = "hf_elm.plot_sections"
_PLOT_SECTIONS = (  # section, heading, kinds that it concerns
    (f"{_SECTIONS}:PlotSection", "figure", PLOT_KINDS),
    (f"{_SECTIONS}:PlotPromptSection", f"prompt ({', '.join(_OF_PROMPTS)})", _OF_PROMPTS),
    (f"{_SECTIONS}:PlotTokensSection", "tokens (trajectory, tokens, animate)", ("trajectory", "tokens", "animate")),
    (f"{_SECTIONS}:PlotModeSection", "landscape", ("landscape",)),
    (f"{_SECTIONS}:PlotGridSection", "plane (landscape, animate)", ("landscape", "animate")),
    (f"{_SECTIONS}:PlotFilmSection", "film (animate)", ("animate",)),
    (f"{_PLOTS}:PlotTextSection", "text (heatmap)", ("heatmap",)),
    (f"{_PLOTS}:PlotHeldOutSection", f"text ({', '.join(PLOTS_OF_CORPORA)})", PLOTS_OF_CORPORA),
    (f"{_PLOTS}:PlotLikelihoodSection", f"log Z ({', '.join(_ENERGY_KINDS)})", _ENERGY_KINDS),
)


def plot_schema(kind: str | None = None) -> Schema:
    """Keys of ``plot``; those of every kind when it is not known yet."""
    kinds = set(PLOT_KINDS if kind is None else (kind,))
    keys = section(f"{_SECTIONS}:CheckpointSection", "", "model", exclude={"dtype"})
    keys = keys if kinds != {"training"} else [key for key in keys if key.name == "checkpoint"]
    known = {key.name for key in keys}
    for path, heading, concerned in _PLOT_SECTIONS:
        if kinds & set(concerned):
            keys += section(path, "", heading, exclude=known)  # what several kinds share is described once
            known |= {key.name for key in keys}
    if thinking := kinds & set(_THINKING_KINDS):
        unfit = {"use_thinking", "think_samples", "langevin_noise"} | (
            {"think_topk"} if thinking == {"gain"} else set()
        )
        keys += section(f"{_SECTIONS}:ThinkingSection", "", f"thinking ({', '.join(_THINKING_KINDS)})", exclude=unfit)
    if kinds & set(PLOTS_OF_CORPORA):
        heading = f"data ({', '.join(PLOTS_OF_CORPORA)}; missing: as in the run that wrote the checkpoint)"
        keys += section(f"{_SECTIONS}:DataSection", "data.", heading)
    aliases = {
        "corpus": "data.corpus",
        "data.block_size": "data.sequence_length",
        "topk": "think_topk",
        "color": "colour",
    }
    return Schema(keys, aliases)


def quickstart_schema(model: str | None = None) -> Schema:
    """Keys of ``quickstart``; those of every model's story when it is not known yet.

    Raises:
        ValueError: no story of that model.
    """
    stories = {name.replace("_", "-"): found.quickstart_keys for name, found in FAMILIES.items() if found.quickstart}
    if model is not None and model.replace("_", "-") not in stories:
        raise ValueError(f'model must be one of {", ".join(stories)}, got "{model}".')
    keys = {key.name: key for key in section(f"{_SECTIONS}:QuickstartSection", "", "quickstart")}
    for name, path in stories.items():
        own = {key.name: key for key in section(path, "", f"model={name}")}
        if model is None:
            keys = keys | own | keys  # in this order, and what all stories share is described once
        elif name == model.replace("_", "-"):
            keys |= own
    return Schema(keys.values(), {"family": "model"})
