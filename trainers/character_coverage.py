"""Which characters of a text a tokenizer does not know. Needs no `datasets`, unlike `tokenization`."""

from transformers import PreTrainedTokenizerBase


def unknown_characters(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The distinct characters of ``text`` that the tokenizer maps to its unknown token, in the order of appearance."""
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id == tokenizer.eos_token_id:  # GPT-2: byte level
        return []
    characters = list(dict.fromkeys(text))
    ids = tokenizer(characters, add_special_tokens=False)["input_ids"] if characters else []
    return [character for character, own in zip(characters, ids, strict=True) if tokenizer.unk_token_id in own]
