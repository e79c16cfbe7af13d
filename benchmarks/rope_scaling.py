"""A small LM trained on short rows, scored on longer ones with linear scaling of rotary positions by 1, 2 and 4.

python benchmarks/rope_scaling.py [--lm runs/quickstart/lm] [--steps 1500] [--tune 100] [--seed 0] [--rows 200]

A Llama of two layers with rotary angles over whole heads learns the interpreter's library byte by byte in rows of 64. It is wrapped by
`MonArcForCausalLM.from_causal_lm(..., rope_scaling=...)`, whose energies are still zero, and scored on held-out rows of 256: at once, and
after the LM was trained on for a few steps on rows of 256 with that scaling. One record per factor, before and after; nats/byte by
place in the row, standard errors by file. All factors see the same rows in the same order. With --lm a saved LM over bytes, such as that
of `hf-elm quickstart`, takes the place of the one that is trained.
"""

import argparse
import copy
import functools
import tempfile
import time

import numpy as np
import torch
from record import record
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from hf_elm.modeling.monarc import MonArcForCausalLM
from hf_elm.trainers.corpora import load_corpus
from hf_elm.trainers.packing import PackingCollator, pack_rows
from hf_elm.trainers.tokenization import build_tokenizer


SHORT, LONG = 64, 256
FACTORS = (1, 2, 4)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
PLACES = ((0, 64), (64, 128), (128, 256))


def main():
    options = _options()
    torch.set_num_threads(1)
    tokenizer = build_tokenizer("byte")
    corpus = load_corpus("stdlib", held_out_fraction=0.1, seed=options.seed, max_bytes=options.max_bytes)
    pack = functools.cache(lambda length: pack_rows(corpus.train, tokenizer, length, seed=options.seed))
    lm, facts = _saved(options) if options.lm else _trained(options, pack, tokenizer)
    facts |= {"seed": options.seed, "parameters": lm.num_parameters(), "trained_tokens": SHORT, "row_tokens": LONG}
    rows, files = _held_out_rows(corpus, options.rows, options.seed)
    for factor in FACTORS:
        scaling = {"rope_type": "linear", "factor": factor}
        model = MonArcForCausalLM.from_causal_lm(copy.deepcopy(lm), rope_scaling=scaling)
        _score(model, rows, files, factor, 0, facts)
        if options.tune:
            _train(model.lm, pack(LONG), tokenizer, options.tune, 8, 1e-3, options.seed + 1)
            _score(model, rows, files, factor, options.tune, facts)


def _saved(options):
    lm = AutoModelForCausalLM.from_pretrained(options.lm)
    return lm, {
        "lm": lm.config.model_type,
        "rotary_share": lm.config.rope_parameters.get("partial_rotary_factor", 1.0),
    }


def _trained(options, pack, tokenizer):
    set_seed(options.seed)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    lm = LlamaForCausalLM(LlamaConfig(**SHAPE, **special, vocab_size=len(tokenizer), max_position_embeddings=SHORT))
    start = time.process_time()
    _train(lm, pack(SHORT), tokenizer, options.steps, 32, 4e-3, options.seed)
    seconds = round(time.process_time() - start, 1)
    return lm, {"lm": "llama", "rotary_share": 1.0, "steps": options.steps, "train_cpu_seconds": seconds}


def _train(lm, rows, tokenizer, steps, batch, rate, seed):
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, learning_rate=rate, lr_scheduler_type="linear",
            warmup_steps=min(100, steps // 10), adam_beta2=0.95, weight_decay=0.1, save_strategy="no", report_to="none", use_cpu=True,
            logging_steps=200, seed=seed, disable_tqdm=True,
        )  # fmt: skip
        Trainer(
            model=lm, args=arguments, train_dataset=rows, data_collator=PackingCollator(tokenizer.pad_token_id)
        ).train()
    lm.eval()


def _held_out_rows(corpus, count, seed):
    """Pieces of ``LONG`` bytes, at most eight of each held-out file; int64 ``(rows, LONG)`` and the files' numbers."""
    generator, pieces, files = np.random.default_rng(seed), [], []
    for number, row in enumerate(corpus.held_out):
        data = row["text"].encode()
        for _ in range(min(8, len(data) // (2 * LONG))):
            start = int(generator.integers(len(data) - LONG))
            pieces.append(list(data[start : start + LONG]))
            files.append(number)
    chosen = generator.permutation(len(pieces))[:count]
    return torch.tensor([pieces[i] for i in chosen]), np.array([files[i] for i in chosen])


@torch.no_grad()
def _score(model, rows, files, factor, tuned, facts):
    model.eval()
    nll = torch.cat([_nll(model(batch, output_energies=False).logits, batch) for batch in rows.split(16)]).numpy()
    values = {}
    for first, last in PLACES:
        part = nll[:, max(first - 1, 0) : last - 1]
        values[f"{first}-{last}"] = [round(float(part.mean()), 4), round(_error(part.mean(1), files), 4)]
    record(
        "rope_scaling", impl=f"linear x{factor}" if factor > 1 else "unscaled", metric="nll", unit="nats/byte", tuned_steps=tuned,
        value=round(float(nll.mean()), 4), se=round(_error(nll.mean(1), files), 4), by_place=values, n=len(rows),
        files=len(set(files.tolist())), **facts,
    )  # fmt: skip


def _nll(logits, ids):
    return -logits[:, :-1].double().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def _error(values, files):
    """Standard error of the mean with files as clusters."""
    sums = np.bincount(files, values - values.mean())
    count = len(set(files.tolist()))
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(values))


def _options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lm", help="folder of a causal LM over bytes that was trained on rows of 64")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tune", type=int, default=100, help="steps on long rows, 0 for none")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--max-bytes", type=int, help="read so much of the library; all where it is missing")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
