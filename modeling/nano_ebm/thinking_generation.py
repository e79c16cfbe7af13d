"""`generate` with thinking: refinement options as fields of the generation config, and a check of the prompt's length."""

DEFAULTS = {  # field of the generation config -> value; None = the model's own configuration
    "use_thinking": None,
    "think_steps": None,
    "think_lr": None,
    "think_topk": 0,
    "think_max_move": None,
    "think_tolerance": None,
    "think_samples": 1,
    "langevin_noise": None,
}


class ThinkingGeneration:
    """The part of `NanoEBMForRefinement` behind `generate`; ``super()`` leads to `transformers.GenerationMixin`.

    Only the last position is refined at each step; the earlier ones keep the states, keys and memories they had.
    """

    def set_thinking_defaults(self) -> None:
        """Gives ``generation_config`` the fields of thinking where it lacks them."""
        self.generation_config._from_model_config = False  # True would drop these fields when the saved file is read
        for name, value in DEFAULTS.items():
            if not hasattr(self.generation_config, name):
                setattr(self.generation_config, name, value)

    def adjust_generation_fn(self, *args, **kwargs):
        super().adjust_generation_fn(*args, **kwargs)  # replaces generation_config by the loaded one
        self.set_thinking_defaults()

    def generate(self, *args, **kwargs):
        """`GenerationMixin.generate`, every token predicted by refinement.

        Further fields of the generation config, which are keyword arguments as well and are saved with it: ``use_thinking``,
        ``think_steps``, ``think_lr``, ``think_topk``, ``think_max_move``, ``think_tolerance``, ``think_samples`` and
        ``langevin_noise``, as in `NanoEBMForRefinement.forward`; None = as configured for training. The argument
        ``generator``, a `torch.Generator`, is the source of the noise of ``think_samples``.

        Raises:
            ValueError: a field out of range; prompt and new tokens exceed the positions; a cache that cannot hold memories.
        """
        return super().generate(*args, **kwargs)

    def _prepare_generation_config(self, generation_config=None, **kwargs):
        self.set_thinking_defaults()
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        for name in DEFAULTS:
            model_kwargs[name] = getattr(generation_config, name, None)
        return generation_config, model_kwargs

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        positions = self.max_positions()
        asked = not has_default_max_length or generation_config.max_new_tokens is not None
        longest = generation_config.max_length if asked else input_ids_length + 1
        if positions is not None and longest > positions:
            room = positions - input_ids_length
            remedy = f"pass max_new_tokens={room} at most" if room > 0 else "shorten the prompt"
            raise ValueError(
                f"the model has {positions} positions, but the prompt has {input_ids_length} tokens and max_length is "
                f"{generation_config.max_length}; {remedy}."
            )
        if positions is not None:
            generation_config.max_length = min(generation_config.max_length, positions)
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)
