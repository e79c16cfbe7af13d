"""Who writes a trainer's model card. Cards are no matter of trainers: the package's face names the function that writes them."""

import importlib
from typing import Any


writer: str | None = (
    None  # "package.module:function", called with the trainer and what `Trainer.create_model_card` was given
)


def write_card(trainer, **said: Any) -> bool:
    """Have the card of ``trainer`` written into its ``output_dir``; False where nobody does, or not for such a model."""
    if writer is None:
        return False
    module, name = writer.split(":")
    return getattr(importlib.import_module(module), name)(trainer, **said)
