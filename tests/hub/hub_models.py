"""A tiny model, a tokenizer and rows of each family for pushes, and trainers of them."""

import datasets
import torch

from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForMaskedLM
from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM
from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement
from hf_elm.trainers import (
    MaskedLMConfig,
    MaskedLMTrainer,
    RefinementConfig,
    RefinementTrainer,
    ResidualEnergyConfig,
    ResidualEnergyTrainer,
    build_tokenizer,
)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2}
LLAMA = {"model_type": "llama", "vocab_size": 258, "intermediate_size": 48, "num_attention_heads": 2, **SIZES}
SPECIAL = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 257}
FAMILIES = ("monarc", "nano_ebm", "m2_bert")
TRAINERS = {
    "monarc": (ResidualEnergyTrainer, ResidualEnergyConfig),
    "nano_ebm": (RefinementTrainer, RefinementConfig),
    "m2_bert": (MaskedLMTrainer, MaskedLMConfig),
}


def make_model(family, seed=0):
    """Every weight random, the zero-initialised ones included."""
    torch.manual_seed(seed)
    if family == "monarc":
        text = {**LLAMA, "num_key_value_heads": 2, "max_position_embeddings": 64, **SPECIAL}
        model = MonArcForCausalLM(MonArcConfig(text_config=text, energy_adapter_rank=0))
        model.generation_config.num_candidates = 3
    elif family == "nano_ebm":
        config = NanoEBMConfig(vocab_size=258, num_attention_heads=4, max_position_embeddings=48, **SIZES, **SPECIAL)
        model = NanoEBMForRefinement(config)
    else:
        sizes = {"intermediate_size": 64, "filter_order": 16, "max_position_embeddings": 64, "vocab_size": 260}
        model = M2BertForMaskedLM(M2BertConfig(**SIZES, **sizes, pad_token_id=256, hidden_dropout_prob=0.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "step_sizes.raw":
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def make_tokenizer(family):
    return build_tokenizer("byte", encoder=family == "m2_bert")


def input_ids():
    return torch.randint(97, 123, (2, 9), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def outputs(model):
    """Everything that must come back after a round trip."""
    found = model(input_ids())
    names = ("logits", "s1_logits", "energies")
    return {name: found[name].contiguous().clone() for name in names if getattr(found, name, None) is not None}


def make_trainer(family, output_dir, repo_id, strategy, push=True):
    """Two steps, a checkpoint after each."""
    trainer, config = TRAINERS[family]
    generator = torch.Generator().manual_seed(1)
    start = [257] if family == "m2_bert" else []
    rows = [start + torch.randint(97, 123, (12,), generator=generator).tolist() for _ in range(8)]
    quiet = {
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "report_to": "none",
    }
    args = config(
        output_dir=str(output_dir),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        push_to_hub=push,
        hub_model_id=repo_id,
        hub_strategy=strategy,
        hub_always_push=True,
        **quiet,
    )
    return trainer(
        model=make_model(family),
        args=args,
        train_dataset=datasets.Dataset.from_list([{"input_ids": row, **_labels(family, row)} for row in rows]),
        processing_class=make_tokenizer(family),
    )


def _labels(family, row):
    return {} if family == "m2_bert" else {"labels": row, "segment_ids": [0] * len(row)}
