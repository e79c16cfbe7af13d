"""Folders with the records that cards are made from, and the cards they must give.

``python -m tests.model_cards.card_records`` writes the golden files anew; read the difference before it is committed.
"""

import json
import struct
import tempfile
from pathlib import Path

import yaml


GOLDEN = Path(__file__).parent / "golden"
ENVIRONMENT = {
    "hf_elm": "0.1.0",
    "commit": "0123456789abcdef0123456789abcdef01234567+changes",
    "python": "3.11.7",
    "platform": "Linux",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"},
    "device": "cpu",
    "command": "hf-elm train recipe.yaml data.corpus=/home/me/private/text.txt",
}
LOGS = [
    {"step": 10, "tokens_seen": 20_480, "loss": 3.25},
    {"step": 20, "tokens_seen": 40_960, "loss": 2.5, "lm_loss": 2.4},
    {"step": 20, "train_runtime": 4.0},
]
TEXT_CONFIG = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49_152}
INTERVAL = {
    "unit": "nats/token", "method": "sampled", "num_tokens": 8192, "num_documents": 12, "vocab_size": 49_152, "num_samples": 64,
    "exact_top": 32, "lm_nll": 2.5, "lm_nll_se": 0.03, "elm_nll": None, "elm_nll_lower": 2.44, "elm_nll_lower_se": 0.031,
    "elm_nll_upper": 2.47, "elm_nll_upper_se": 0.032, "gain_lower": 0.03, "gain_lower_se": 0.005, "gain_upper": 0.06,
    "gain_upper_se": 0.004, "lm_bits_per_byte": 1.2, "elm_bits_per_byte_lower": 1.17, "elm_bits_per_byte_upper": 1.19,
    "equal_compute_lm_nll": 2.48, "equal_compute_lm_nll_se": 0.029, "diagnostics": {"claimed_nll": 2.3456},
}  # fmt: skip
REFINED = {
    "unit": "nats/token", "num_tokens": 60_000, "num_documents": 40, "think_steps": 2, "more_think_steps": 8, "vocab_size": 258,
    "s1_nll": 1.7, "s1_nll_se": 0.02, "s2_nll": 1.6, "s2_nll_se": 0.02, "s2_more_nll": 1.61, "s2_more_nll_se": 0.02,
    "thinking_gain": 0.1, "thinking_gain_se": 0.003, "more_thinking_gain": -0.01, "more_thinking_gain_se": 0.001,
    "s1_bits_per_byte": 2.45, "s2_bits_per_byte": 2.31, "parameters": {"nano_ebm": 800_000},
}  # fmt: skip
MASKED = {
    "eval_loss": 3.1,
    "eval_masked_accuracy": 0.41,
    "eval_unigram_entropy": 5.2,
    "eval_masked_tokens": 5000,
    "epoch": 1.0,
}
RANKING = {
    "metrics": ["ndcg@10", "recall@100"],
    "scores": [
        {"retriever": name, "task": "code, held out", "num_queries": 90, "num_documents": 400, "num_cut_documents": 0,
         "means": {"ndcg@10": value, "recall@100": 0.95}, "standard_errors": {"ndcg@10": 0.02, "recall@100": None}}
        for name, value in (("first", 0.61), ("BM25", 0.58))
    ],
}  # fmt: skip
RECORDS = {  # name -> (files of the folder, what no file says)
    "monarc_adapted": (
        {
            "config.json": {
                "model_type": "monarc", "architectures": ["MonArcForCausalLM"], "dtype": "float32", "energy_adapter_rank": 8,
                "text_config": TEXT_CONFIG,
            },
            "recipe.yaml": {
                "family": "monarc", "seed": 3, "model": {"base": "someone/small-lm"},
                "data": {"corpus": "someone/corpus", "sequence_length": 1024},
                "train": {"max_steps": 20, "learning_rate": 0.001, "freeze_lm": True, "output_dir": "runs/adapted"},
            },
            "environment.json": ENVIRONMENT, "metrics.jsonl": LOGS, "likelihood.json": INTERVAL,
        },
        {"repo_id": "user/adapted", "license": "apache-2.0"},
    ),
    "monarc_unknown": (
        {"config.json": {"model_type": "monarc", "architectures": ["MonArcForCausalLM"], "text_config": {"model_type": "gpt2"}}},
        {},
    ),
    "nano_ebm_local": (
        {
            "config.json": {
                "model_type": "nano_ebm", "architectures": ["NanoEBMForRefinement"], "hidden_size": 128, "num_hidden_layers": 3,
                "vocab_size": 258, "max_position_embeddings": 128, "think_steps": 2, "energy_type": "free_energy",
            },
            "recipe.yaml": {"seed": 0, "data": {"corpus": "/home/me/private/text.txt"}, "train": {"max_steps": 20}},
            "environment.json": ENVIRONMENT, "likelihood.json": REFINED,
        },
        {"repo_id": "user/thinker"},
    ),
    "m2_bert_embedder": (
        {
            "config.json": {
                "model_type": "m2_bert", "architectures": ["M2BertForSentenceEmbedding"], "hidden_size": 768,
                "max_position_embeddings": 2048, "padding_mode": "reference",
            },
            "modules.json": {}, "retrieval.json": RANKING,
        },
        {"repo_id": "user/embedder", "license": "mit"},
    ),
    "m2_bert_pretrained": (
        {
            "config.json": {
                "model_type": "m2_bert", "architectures": ["M2BertForMaskedLM"], "vocab_size": 2048, "padding_mode": "mask",
                "max_position_embeddings": 128,
            },
            "recipe.yaml": {"seed": 0, "data": {"corpus": "stdlib"}, "train": {"mlm_probability": 0.3}},
            "environment.json": ENVIRONMENT, "likelihood.json": MASKED,
        },
        {"repo_id": "user/encoder"},
    ),
}  # fmt: skip


def write_records(name, folder):
    """The folder of ``RECORDS[name]``, with weights of 12 elements; what no file says."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files, declared = RECORDS[name]
    for file, content in files.items():
        if file.endswith(".yaml"):
            text = yaml.safe_dump(content, sort_keys=False)
        else:
            lines = content if isinstance(content, list) else [content]
            text = "\n".join(map(json.dumps, lines)) + "\n"
        (folder / file).write_text(text, encoding="utf-8")
    write_weights(folder / "model.safetensors")
    return declared


def write_weights(path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(48))


def main():
    from hf_elm.model_cards.card_facts import read_facts
    from hf_elm.model_cards.card_text import model_card

    GOLDEN.mkdir(exist_ok=True)
    for name in RECORDS:
        with tempfile.TemporaryDirectory() as folder:
            declared = write_records(name, folder)
            (GOLDEN / f"{name}.md").write_text(model_card(read_facts(folder, **declared)), encoding="utf-8")


if __name__ == "__main__":
    main()
