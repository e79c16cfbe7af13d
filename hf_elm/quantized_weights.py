"""Quantised weights for the language model inside: int8 by torchao, 8 or 4 bits by bitsandbytes."""

import importlib.util


PACKAGES = {"int8": "torchao", "8bit": "bitsandbytes", "4bit": "bitsandbytes"}


def quantization_config(kind: str):
    """The ``quantization_config`` of ``from_pretrained`` for "int8" (any device), "8bit" or "4bit" (NF4, computing in bfloat16).

    Raises:
        ImportError: the package behind ``kind`` is not installed.
        ValueError: another kind.
    """
    if kind not in PACKAGES:
        raise ValueError(f'model.quantization must be one of {", ".join(PACKAGES)}, got "{kind}".')
    if importlib.util.find_spec(PACKAGES[kind]) is None:
        raise ImportError(
            f'model.quantization={kind} needs the package {PACKAGES[kind]}: pip install "hf_elm[quant]".'
        )
    import torch
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
