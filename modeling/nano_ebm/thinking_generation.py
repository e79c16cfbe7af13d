"""`generate` with thinking: refinement options as fields of the generation config, and a check of the prompt's length."""

import torch

from .token_step import TokenStep


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

    _token_step: TokenStep | None = None  # while `generate` runs

    def set_thinking_defaults(self) -> None:
        """Gives ``generation_config`` the fields of thinking where it lacks them."""
        self.generation_config._from_model_config = False  # True would drop these fields when the saved file is read
        for name, value in DEFAULTS.items():
            if not hasattr(self.generation_config, name):
                setattr(self.generation_config, name, value)

    def adjust_generation_fn(self, *args, **kwargs):
        super().adjust_generation_fn(*args, **kwargs)  # replaces generation_config by the loaded one
        self.set_thinking_defaults()

    @torch.no_grad()
    def generate(self, *args, **kwargs):
        """`GenerationMixin.generate`, every token predicted by refinement.

        Further fields of the generation config, which are keyword arguments as well and are saved with it: ``use_thinking``,
        ``think_steps``, ``think_lr``, ``think_topk``, ``think_max_move``, ``think_tolerance``, ``think_samples`` and
        ``langevin_noise``, as in `NanoEBMForRefinement.forward`; None = as configured for training. The argument
        ``generator``, a `torch.Generator`, is the source of the noise of ``think_samples``.

        Raises:
            ValueError: a field out of range; prompt and new tokens exceed the positions; a cache that cannot hold memories.
        """
        self._token_step = TokenStep(self) if TokenStep.serves(self) else None
        try:
            return super().generate(*args, **kwargs)
        finally:
            self._token_step = None  # weights may change from here on

    def _prepare_generation_config(self, generation_config=None, **kwargs):
        self.set_thinking_defaults()
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        for name in DEFAULTS:
            model_kwargs[name] = getattr(generation_config, name, None)
        return generation_config, model_kwargs

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, is_first_iteration=False, **kwargs):
        if is_first_iteration or not kwargs.get("use_cache") or kwargs.get("position_ids") is not None:
            return super().prepare_inputs_for_generation(
                input_ids, next_sequence_length, is_first_iteration=is_first_iteration, **kwargs
            )
        # one more token: what transformers' own method, which looks through signatures, would return
        new_ids = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        device = self.get_input_embeddings().weight.device
        return {**kwargs, "input_ids": new_ids if new_ids.device == device else new_ids.to(device)}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, is_encoder_decoder=False, num_new_tokens=1):
        step = self._token_step
        if step is not None and step.unpadded is None:
            step.unpadded = _counts_every_token(model_kwargs.get("attention_mask"), model_kwargs.get("position_ids"))
        if step is not None and step.unpadded:  # tokens that come are no padding either
            model_kwargs.pop("attention_mask", None)
            model_kwargs.pop("position_ids", None)
            if outputs.past_key_values is not None:
                model_kwargs["past_key_values"] = outputs.past_key_values
            return model_kwargs
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder, num_new_tokens)

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


def _counts_every_token(mask, position_ids):
    """Whether there is no padding and positions are 0, 1, 2, ..."""
    counted = mask is None or bool(mask.all())
    return counted and (
        position_ids is None
        or bool((position_ids == torch.arange(position_ids.shape[-1], device=position_ids.device)).all())
    )
