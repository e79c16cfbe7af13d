"""README.md beside a model: written by us where there is none or only one of ours, never over the user's."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from .families import FAMILIES
from .model_cards.card_facts import CONFIG, CURVES, LIKELIHOOD, RETRIEVAL, has_curves, read_facts
from .model_cards.card_text import is_own_card, model_card, with_repo_id
from .run_folder import write_atomically


CARD = "README.md"
RESULTS = (LIKELIHOOD, RETRIEVAL)


def has_users_card(folder: str | Path) -> bool:
    """Whether ``folder`` has a README.md that was not written by us, or was edited since."""
    path = Path(folder, CARD)
    return path.is_file() and not is_own_card(path.read_text(encoding="utf-8", errors="replace"))


def new_card(folder: str | Path, *, source: str | Path | None = None, **declared: Any) -> str | None:
    """The text of the card for the model in ``folder``; None where the user's own README.md is there and stays.

    An exported folder has no recipe any more; its card gets the new title and loading section and keeps the rest.

    Args:
        source, declared: see `read_facts`.
    """
    if has_users_card(folder):
        return None
    path = Path(folder, CARD)
    facts = read_facts(folder, source=source, **declared)
    if facts.recipe or facts.environment or not path.is_file():
        return model_card(facts)
    return with_repo_id(path.read_text(encoding="utf-8"), facts)


def carry_over(source: str | Path, folder: str | Path, **declared: Any) -> None:
    """Beside the model exported from ``source`` (folder or Hub id) to ``folder``: evaluation results, the picture of
    its training, and its card.

    The user's README.md is copied as it is.
    """
    source = Path(source)
    if not (source / CONFIG).is_file():  # a Hub id: its records are there, not here
        source = None
    for name in RESULTS if source else ():
        if (source / name).is_file():
            shutil.copyfile(source / name, Path(folder, name))
    if source and has_curves(source):
        shutil.copyfile(source / CURVES, Path(folder, CURVES))
    if source and (source / CARD).is_file():
        shutil.copyfile(source / CARD, Path(folder, CARD))
    if (text := new_card(folder, source=source, **declared)) is not None:
        write_atomically(Path(folder, CARD), text)


def write_trainer_card(trainer, **said: Any) -> bool:
    """Write the card of a trainer's ``output_dir``, where its model was saved; of adapters PEFT writes one itself.

    What no file of the folder says is taken from the trainer: its arguments and the last evaluation.

    Args:
        said: arguments of `transformers.Trainer.create_model_card`.

    Returns:
        whether the model is one that we write cards for.
    """
    from transformers.utils import logging

    model = trainer.accelerator.unwrap_model(trainer.model)
    folder = trainer.args.output_dir
    if getattr(model.config, "model_type", None) not in FAMILIES or hasattr(model, "peft_config"):
        return False
    if has_users_card(folder):
        logging.get_logger(__name__).warning(
            f"{Path(folder, CARD)} is kept: it was not written by hf_elm, or was edited."
        )
        return True
    facts = read_facts(folder, repo_id=getattr(trainer, "hub_model_id", None), **_declared(said))
    write_atomically(Path(folder, CARD), model_card(_completed(facts, trainer)))
    return True


def _declared(said):
    def names(key):
        value = said.get(key) or ()
        return (value,) if isinstance(value, str) else tuple(value)

    declared = {name: said.get(name) for name in ("license", "language")}
    return declared | {
        "tags": names("tags"),
        "declared_base": said.get("finetuned_from"),
        "declared_datasets": names("dataset_tags"),
    }


def _completed(facts, trainer):
    """``facts`` with the trainer's arguments in the place of a missing recipe, and its last evaluation of one of a likelihood."""
    from .environment import describe_environment

    history = trainer.state.log_history
    evaluation = next((log for log in reversed(history) if "eval_loss" in log), {})
    last = next((log for log in reversed(history) if "loss" in log), {})
    args = trainer.args
    train = {name: value for name, value in vars(args).items() if isinstance(value, (int, float, str, bool))}
    train["lr_scheduler_type"] = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    train = {name: value for name, value in train.items() if not (name == "max_steps" and value < 0)}
    if "max_steps" in train:
        train.pop("num_train_epochs", None)  # max_steps wins
    recipe = {"seed": args.seed, "train": train, "data": {"sequence_length": getattr(args, "max_length", None)}}
    return dataclasses.replace(
        facts,
        recipe=facts.recipe or recipe,
        environment=facts.environment or describe_environment(),
        likelihood=facts.likelihood or evaluation,
        last_log=facts.last_log or {**last, "tokens_seen": trainer.state.num_input_tokens_seen or None},
    )
