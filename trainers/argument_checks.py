"""Checks that the configs of all trainers share."""

from dataclasses import fields


def read_numbers(arguments) -> None:
    """YAML reads ``1e-3`` as text (it wants ``1.0e-3``): text in a number field of ``arguments`` becomes the number it spells.

    Raises:
        ValueError: it spells none.
    """
    for item in fields(arguments):
        value = getattr(arguments, item.name)
        if item.type in (float, float | None) and isinstance(value, str):
            try:
                setattr(arguments, item.name, float(value))
            except ValueError:
                raise ValueError(f"{item.name} must be a number, got {value!r}.") from None


def require(arguments, rules: dict[str, tuple[bool, str]]) -> None:
    """Holds ``arguments`` to ``rules``: field -> (whether it holds, the rule in words).

    Raises:
        ValueError: the first field whose rule does not hold, with its value and the rule.
    """
    for name, (holds, rule) in rules.items():
        if not holds:
            raise ValueError(f"{name} must be {rule}, got {getattr(arguments, name)!r}.")


def give_floor(arguments) -> None:
    """A cosine schedule with a floor gets one of a tenth of the peak, unless ``lr_scheduler_kwargs`` says otherwise."""
    schedule = str(arguments.lr_scheduler_type)
    if schedule.startswith("cosine_") and "min_lr" in schedule:
        arguments.lr_scheduler_kwargs = arguments.lr_scheduler_kwargs or {"min_lr_rate": 0.1}
