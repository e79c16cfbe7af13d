"""The valid keys of each command that takes ``key=value`` arguments."""

from .families import FAMILIES, find_family
from .recipe_keys import Key, Schema, section


_SECTIONS = "hf_elm.recipe_sections"
_EVALUATION = "hf_elm.evaluation:evaluate_elm"
_NOT_OPTIONS = {"model", "data", "tokenizer", "bytes_per_token", "equal_compute_lm", "seed"}  # of evaluate_elm

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


def training_schema(family: str = "monarc") -> Schema:
    """Keys of ``train`` and ``adapt``.

    Raises:
        ValueError: an unknown family, or one without a trainer.
    """
    found = find_family(family)
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
            *section(f"{_SECTIONS}:DataSection", "data.", "data"),
            Key(
                "train.output_dir", "str | None", "runs/<recipe>", "folder of the run; also written output_dir.", "run"
            ),
            *own,
            *(key for key in inherited if key.name not in names and key.name != "train.output_dir"),
            *section(f"{_SECTIONS}:FinalEvaluationSection", "evaluate.", evaluation),
            *(section(_EVALUATION, "evaluate.", evaluation, exclude=_NOT_OPTIONS) if found.residual_energy else ()),
        ],
        ALIASES | found.aliases,
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


def generation_schema(family: str | None = None) -> Schema:
    """Keys of ``generate``; those of every family when it is not known yet.

    Raises:
        ValueError: a family that generates no text.
    """
    families = [find_family(family)] if family else list(FAMILIES.values())
    if family and families[0].generation is None:
        raise ValueError(f"the checkpoint is a {family} model, an encoder that generates no text.")
    keys = [
        *section(f"{_SECTIONS}:CheckpointSection", "", "model"),
        *section(f"{_SECTIONS}:GenerateSection", "", "generation"),
    ]
    aliases: dict[str, str] = {}
    for found in families:
        keys += section(found.generation, "", "generation") if found.generation else []
        aliases |= {alias: key for alias, key in found.aliases.items() if "." not in key}
    return Schema(keys, aliases)


def quickstart_schema() -> Schema:
    """Keys of ``quickstart``."""
    return Schema(section(f"{_SECTIONS}:QuickstartSection", "", "quickstart"))
