"""How to think in one call: arguments where they are given, the configuration elsewhere, all of them checked."""

from dataclasses import dataclass

from .configuration_nano_ebm import NanoEBMConfig, check_field, check_step_size


@dataclass
class ThinkingOptions:
    """Resolved options of one forward pass.

    Attributes:
        steps: refinement steps; 0 = system 1 alone.
        step_size: one alpha for all steps; None = the learnt ones.
        topk: only the k likeliest tokens of system 1 keep probability; 0 = all.
        max_move, tolerance, noise: see `NanoEBMConfig`.
        samples: refinements per position, the first without noise; the one of lowest energy is taken.
    """

    steps: int
    step_size: float | None
    topk: int
    max_move: float
    tolerance: float
    noise: float
    samples: int


def thinking_options(
    config: NanoEBMConfig,
    use_thinking: bool | None = None,
    think_steps: int | None = None,
    think_lr: float | None = None,
    think_topk: int | None = None,
    think_max_move: float | None = None,
    think_tolerance: float | None = None,
    think_samples: int | None = None,
    langevin_noise: float | None = None,
) -> ThinkingOptions:
    """`ThinkingOptions` from the arguments of `NanoEBMForRefinement.forward`; None = as configured.

    Raises:
        ValueError: an option out of range.
    """

    def given(value, default):
        return default if value is None else value

    thinks = given(use_thinking, config.use_thinking)
    options = ThinkingOptions(
        steps=given(think_steps, config.think_steps),
        step_size=think_lr,
        topk=given(think_topk, 0),
        max_move=given(think_max_move, config.think_max_move),
        tolerance=given(think_tolerance, config.think_tolerance),
        noise=given(langevin_noise, config.langevin_noise),
        samples=given(think_samples, 1),
    )
    _check(options, config)
    if not thinks:
        options.steps, options.samples = 0, 1
    return options


def _check(options, config):
    counts = {
        "think_steps": (options.steps, 0),
        "think_topk": (options.topk, 0),
        "think_samples": (options.samples, 1),
    }
    for name, (value, minimum) in counts.items():
        check_field(name, value, _is_int, minimum, f"an integer of at least {minimum}")
    numbers = {
        "think_max_move": options.max_move,
        "think_tolerance": options.tolerance,
        "langevin_noise": options.noise,
    }
    for name, value in numbers.items():
        check_field(name, value, _is_number, 0, "zero or positive")
    if options.step_size is not None:
        check_step_size("think_lr", options.step_size, config.geometry)
    if options.samples > 1 and not options.noise:
        raise ValueError(
            f"think_samples={options.samples} with langevin_noise=0 gives the same refinement every time; "
            "pass langevin_noise > 0, e.g. 0.05."
        )
    if options.samples > 1 and config.use_soft_tokens:
        raise ValueError(
            f"think_samples={options.samples} needs fixed states, but use_soft_tokens={config.use_soft_tokens!r} recomputes them; "
            "pass think_samples=1."
        )


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, (int, float)) and value == value
