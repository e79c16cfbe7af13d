"""Settings of commands that score text by any causal model: what does not concern a model's kind is taken out."""

from typing import Any

from .families import FAMILIES, read_model_type


OF_ENERGIES = ("method", "num_samples", "exact_top", "max_rows")


def keep_fitting(command: str, given: dict[str, Any], settings: dict[str, Any]) -> None:
    """Takes keys out of ``settings`` that do not concern the kind of model at ``settings["checkpoint"]``.

    Args:
        command: for the message.
        given: what the user wrote.

    Raises:
        FileNotFoundError, ValueError: no such model, an encoder, or a key that was given and does not concern the model.
    """
    checkpoint = settings["checkpoint"]
    kind = read_model_type(checkpoint)
    if kind in FAMILIES and FAMILIES[kind].generation is None:
        raise ValueError(f"checkpoint={checkpoint} is a {kind} model, an encoder; {command} takes causal models.")
    has_energy = kind in FAMILIES and FAMILIES[kind].residual_energy
    unfit = (() if has_energy else OF_ENERGIES) + (() if kind == "nano_ebm" else ("think_steps",))
    for key in unfit:
        if key in given:
            raise ValueError(f"{key} does not concern a {kind} model; leave it out.")
        del settings[key]
