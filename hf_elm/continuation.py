"""Continuations of a prompt by a saved model, printed."""

import sys

import torch
from transformers import TextStreamer, set_seed

from .saved_models import load_checkpoint
from .trainers.character_coverage import unknown_characters


def continue_prompt(
    checkpoint: str, prompt: str, stream: bool, seed: int, device=None, dtype=None, **options
) -> list[str]:
    """The prompt and its continuations, printed to standard output and returned.

    Args:
        stream: print tokens as they come (for one continuation).
        options: arguments of ``generate``.

    Raises:
        ValueError: a prompt without tokens for a model without a start token, with characters outside the vocabulary, or longer
            than the model's positions.
    """
    model, tokenizer = load_checkpoint(checkpoint, device, dtype)
    input_ids = prompt_ids(prompt, tokenizer, model).to(model.device)
    set_seed(seed)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = options.get("max_new_tokens", 0) if positions is None else positions - input_ids.shape[1]
    if options.get("max_new_tokens", 0) > room:  # learned positions end there
        sys.stderr.write(
            f"max_new_tokens={options['max_new_tokens']} is cut to {room}: the model has {positions} positions.\n"
        )
        options["max_new_tokens"] = room
    streams = stream and options.get("num_return_sequences", 1) == 1
    streamer = TextStreamer(tokenizer, skip_special_tokens=True) if streams else None
    if not options.get("do_sample", True):  # else transformers warns that they have no effect
        options = {name: value for name, value in options.items() if name not in ("temperature", "top_k", "top_p")}
    mask = torch.ones_like(input_ids)
    output = model.generate(input_ids, attention_mask=mask, streamer=streamer, **options)
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    if streamer is None:
        for number, text in enumerate(texts, start=1):
            title = f"--- {number} of {len(texts)} ---\n" if len(texts) > 1 else ""
            sys.stdout.write(f"{title}{text}\n")
    return texts


def prompt_ids(prompt: str, tokenizer, model) -> torch.Tensor:
    """Token ids of the prompt, ``(1, seq)``; an empty prompt is the start (or end) of document token."""
    unknown = unknown_characters(tokenizer, prompt)
    if unknown:
        listed = ", ".join(map(repr, unknown[:10]))
        raise ValueError(f"prompt has characters that the model's vocabulary lacks: {listed}; leave them out.")
    input_ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=bool(prompt))["input_ids"].long()
    if tokenizer.eos_token_id is not None and input_ids.shape[1] > 1 and input_ids[0, -1] == tokenizer.eos_token_id:
        input_ids = input_ids[:, :-1]  # a tokenizer that ends every text
    if input_ids.shape[1] == 0:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ValueError('prompt="" needs a tokenizer with a start or end token; give a prompt.')
        input_ids = torch.tensor([[start]])
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and input_ids.shape[1] >= positions:
        raise ValueError(f"prompt has {input_ids.shape[1]} tokens; the model has {positions} positions. Shorten it.")
    return input_ids
