"""Is text chosen by an energy-based model's score better to learn from? The same token budget, chosen in several ways.

A pool of blocks of the standard library's training part is scored by `hf-elm score` (bits/byte of the ELM on the beginning of each
block), drawn from by `hf-elm select`, and a small byte-level language model is trained on each choice for the same number of steps.
What is compared is its NLL on held-out files, which neither the scoring model nor any choice has seen. The seed changes the draw,
the initial weights and the order of the rows; a difference is paired by seed.

    OMP_NUM_THREADS=1 python benchmarks/selection.py runs/quickstart/elm [--seeds 0 1 2] [--unrecorded]

The scoring model is that of `hf-elm quickstart`, whose held-out files are those here.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from record import record
from transformers import StableLmConfig, StableLmForCausalLM, get_cosine_schedule_with_warmup

from hf_elm.command_line import main as hf_elm
from hf_elm.quickstart import LM_SHAPE
from hf_elm.quickstart_story import HELD_OUT_FRACTION
from hf_elm.scored_tables import read_table
from hf_elm.trainers import build_tokenizer, load_corpus, pack_rows


BLOCK, LENGTH, ROWS_PER_STEP = 1024, 64, 32
LEARNING_RATE, WARMUP = 4e-3, 30
SCORING = ["method=sampled", "exact_top=8", "num_samples=4", "batch_size=32", "max_rows=512"]
CHOICES = {  # name -> keys of hf-elm select
    "uniform": ["temperature=.inf"],
    "stratified": ["temperature=.inf", "strata=package"],
    "low, tau 1": ["prefer=low"],
    "low, tau 0.25": ["prefer=low", "temperature=0.25"],
    "high, tau 1": ["prefer=high"],
    "high, tau 0.25": ["prefer=high", "temperature=0.25"],
    "stratified low, tau 1": ["prefer=low", "strata=package"],
    "stratified high, tau 1": ["prefer=high", "strata=package"],
}


def pool(documents, blocks: int) -> list[dict]:
    """Blocks of `BLOCK` bytes from random places of the documents, with the package (or part of the manual) of each."""
    places = [
        (i, start) for i, row in enumerate(documents) for start in range(0, len(row["text"].encode()) - BLOCK, BLOCK)
    ]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:blocks].tolist()
    rows = []
    for i, start in sorted(places[k] for k in order):
        source, text = documents[i]["source"], documents[i]["text"].encode()[start : start + BLOCK]
        package = source.split("/")[0] if "/" in source else "modules"
        rows.append({"id": f"{source}:{start}", "text": text.decode(errors="ignore"), "package": package})
    return rows


def trained(texts: list[str], steps: int, seed: int, tokenizer) -> StableLmForCausalLM:
    """A byte-level LM of the quickstart's shape after ``steps`` steps on ``texts``."""
    torch.manual_seed(seed)
    heads = LM_SHAPE["num_attention_heads"]
    config = StableLmConfig(
        **LM_SHAPE, num_key_value_heads=heads, vocab_size=len(tokenizer), max_position_embeddings=LENGTH, use_qkv_bias=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = StableLmForCausalLM(config).train()
    rows = torch.tensor(pack_rows(Dataset.from_dict({"text": texts}), tokenizer, LENGTH, seed=seed)[:-1]["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = rows[torch.randint(len(rows), (ROWS_PER_STEP,), generator=generator)]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def held_out_nll(model, rows: torch.Tensor) -> float:
    """Mean NLL, nats/byte."""
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in rows.split(256)]
    return sum(losses) / len(rows)


def hf_elm_command(*arguments) -> None:
    if hf_elm([str(argument) for argument in arguments]):
        raise SystemExit(f"hf-elm {' '.join(map(str, arguments))} failed")


def compared(args, folder: Path):
    """(choice, seed, held-out NLL, mean score, tokens) of every choice and seed."""
    corpus, tokenizer = load_corpus("stdlib", held_out_fraction=HELD_OUT_FRACTION, seed=0), build_tokenizer("byte")
    held_out = pack_rows(corpus.held_out, tokenizer, LENGTH, seed=0).shuffle(seed=0)
    held_out = torch.tensor(
        held_out.filter(lambda row: len(row["input_ids"]) == LENGTH)[: args.held_out_rows]["input_ids"]
    )
    blocks = pool(corpus.train, args.blocks)
    texts, scores = (folder / f"{name}-{args.blocks}-{args.scored_bytes}.jsonl" for name in ("pool", "scores"))
    texts.write_text("".join(json.dumps(row) + "\n" for row in blocks), encoding="utf-8")
    options = [
        "id_column=id",
        "keep=[package]",
        f"document_bytes={args.scored_bytes}",
        f"window={LENGTH}",
        "device=cpu",
        *SCORING,
    ]
    if not scores.exists():
        hf_elm_command("score", texts, f"checkpoint={args.checkpoint}", f"output={scores}", *options)
    for seed in args.seeds:
        for number, (name, keys) in enumerate(CHOICES.items()):
            chosen = folder / f"chosen-{number}-{seed}.jsonl"
            for old in (chosen, Path(f"{chosen}.json")):
                old.unlink(missing_ok=True)
            budget = f"max_tokens={round(args.share * args.blocks * BLOCK)}"
            hf_elm_command("select", scores, f"output={chosen}", budget, f"seed={seed}", *keys)
            found = json.loads(Path(f"{chosen}.json").read_text())
            model = trained([row["text"] for row in read_table(chosen)], args.steps, seed, tokenizer)
            nll = held_out_nll(model, held_out)
            print(f"{name}, seed {seed}: {nll:.4f} nats/byte", flush=True)
            yield name, seed, nll, found["mean_of_chosen"], found["num_chosen_tokens"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--blocks", type=int, default=1500)
    parser.add_argument("--share", type=float, default=0.2, help="of the pool's tokens that is chosen")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--held-out-rows", type=int, default=3000)
    parser.add_argument("--scored-bytes", type=int, default=512, help="of each block")
    parser.add_argument("--workdir", type=Path, help="folder that keeps the scores for another run")
    parser.add_argument("--unrecorded", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        folder = args.workdir or Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = list(compared(args, folder))
    by_name = {name: {seed: rest for own, seed, *rest in lines if own == name} for name in CHOICES}
    for name, seeds in by_name.items():
        nlls = [nll for nll, _, _ in seeds.values()]
        differences = [seeds[seed][0] - by_name["uniform"][seed][0] for seed in seeds]
        fields = {
            "choice": name, "metric": "held_out_nll", "unit": "nats/byte", "n": len(nlls), "values": [round(x, 4) for x in nlls],
            "mean": round(statistics.mean(nlls), 4), "minus_uniform": [round(x, 4) for x in differences],
            "mean_elm_bits_per_byte": round(statistics.mean(score for _, score, _ in seeds.values()), 4),
            "chosen_tokens": [tokens for _, _, tokens in seeds.values()], "steps": args.steps, "blocks": args.blocks,
            "scored_bytes": args.scored_bytes, "share": args.share, "seeds": args.seeds, "keys": CHOICES[name],
        }  # fmt: skip
        if args.unrecorded:
            print(json.dumps(fields))
        else:
            record("selection", **fields)
    print(f"{time.process_time() - start:.0f} CPU-s in all")


if __name__ == "__main__":
    main()
