"""A small LM trained until more training hardly pays, then continued in three ways at equal CPU time.

1. ``continue``: the same LM with a re-warmed learning rate;
2. ``adapt``: the LM frozen, with a rank-8 energy adapter and a bilinear energy head (direct loss, one negative per position);
3. ``grow``: the LM frozen and grown by one layer that starts as the identity (its output projections are zero).

All rows are trained by the same plain loop over the same packed rows. How many steps cost the same is found beforehand, by
timing the steps in alternation; the CPU seconds that each training took are reported beside. Likelihoods are exact, over the
whole vocabulary, on held-out files; gains are paired by token, their standard errors by file. ``--trainer`` adds the adapter
as `ResidualEnergyTrainer` trains it. Whatever is finished in ``--workdir`` is not repeated.

    OMP_NUM_THREADS=1 python benchmarks/adapt_saturated_lm.py [--adapt-rates 4e-3 --continue-rates 1e-4 3e-4 1e-3]
"""

import argparse
import copy
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from record import alternate, record
from torch import nn
from transformers import StableLmConfig, StableLmForCausalLM

from hf_elm.evaluation import evaluate_elm
from hf_elm.modeling.monarc.lm_head_loss import lm_head_pass
from hf_elm.modeling.monarc.modeling_monarc import MonArcForCausalLM
from hf_elm.trainers.corpora import load_corpus
from hf_elm.trainers.packing import pack_rows
from hf_elm.trainers.residual_energy_config import ResidualEnergyConfig
from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer
from hf_elm.trainers.tokenization import build_tokenizer


SEQUENCE_LENGTH, BATCH_SIZE, VOCAB_SIZE = 64, 32, 98
CHUNK_SIZE = 4096  # rows of the LM head at once: a whole batch
LM_TRAINING = dict(rate=4e-3, warmup=100, weight_decay=0.1, seed=0)
CONTINUED = dict(warmup=200, weight_decay=0.1)
ADAPTED = dict(warmup=50, weight_decay=0.0)
GROWN = dict(warmup=50, weight_decay=0.1)


class PackedText:
    """The standard library as rows of 64 characters: ``train (rows, seq)``, and held-out rows spread over its files."""

    def __init__(self, held_out_rows):
        corpus = load_corpus("stdlib")
        self.tokenizer = build_tokenizer("char", corpus.train, vocab_size=VOCAB_SIZE)
        rows = pack_rows(corpus.train, self.tokenizer, SEQUENCE_LENGTH, drop_last=True).with_format("torch")[:]
        whole = (rows["segment_ids"] == 0).all(1)  # the few rows with a document boundary are left out of training
        self.train = rows["input_ids"][whole].long()
        held_out = pack_rows(corpus.held_out, self.tokenizer, SEQUENCE_LENGTH, drop_last=True)
        self.held_out = held_out.select(torch.linspace(0, len(held_out) - 1, held_out_rows).long().tolist())


# ---------------------------------------------------------------------------------------------------------- training


def train(model, loss_of, rows, *, steps, rate, warmup, weight_decay, seed, log=None):
    """CPU seconds of ``steps`` steps of AdamW on random batches of ``rows``; linear warm-up, then linearly to zero."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    start = time.process_time()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / warmup) * (1 - step / steps)
        loss = loss_of(rows[torch.randint(len(rows), (BATCH_SIZE,), generator=generator)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if log and (step + 1) % log == 0:
            print(f"step {step + 1} loss {loss.item():.4f} cpu {time.process_time() - start:.0f} s", flush=True)
    return time.process_time() - start


def train_by_trainer(model, rows, folder, *, steps, rate, warmup, weight_decay, seed):
    """CPU seconds of the same training by `ResidualEnergyTrainer`."""
    args = ResidualEnergyConfig(
        output_dir=str(folder), max_steps=steps, learning_rate=rate, warmup_steps=warmup, lr_scheduler_type="linear",
        weight_decay=weight_decay, per_device_train_batch_size=BATCH_SIZE, seed=seed, use_cpu=True, logging_steps=500,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = ResidualEnergyTrainer(model, args, train_dataset=Dataset.from_dict({"input_ids": rows.numpy()}))
    start = time.process_time()
    trainer.train()
    return time.process_time() - start


def lm_loss(lm, seed=None):
    """The cross-entropy of a batch, nats/token, through the same chunked head as MonArc's."""

    def loss_of(input_ids):
        hidden = lm.model(input_ids=input_ids, use_cache=False).last_hidden_state
        targets = input_ids[:, 1:].flatten()
        weights = torch.full(targets.shape, 1 / targets.numel())
        return lm_head_pass(lm.lm_head, hidden[:, :-1].flatten(0, 1), targets, weights, chunk_size=CHUNK_SIZE).loss

    return loss_of


def elm_loss(model, seed):
    """The loss of a MonArc model, with negatives of its own for each seed."""
    generator = torch.Generator().manual_seed(seed + 100)
    return lambda input_ids: model(input_ids=input_ids, labels=input_ids, generator=generator).loss


# ------------------------------------------------------------------------------------------------------------ models


def small_lm(num_layers=2, seed=0):
    torch.manual_seed(seed)
    return StableLmForCausalLM(
        StableLmConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=88, num_hidden_layers=num_layers,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=SEQUENCE_LENGTH,
            partial_rotary_factor=1.0, use_qkv_bias=True, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=VOCAB_SIZE - 2, pad_token_id=VOCAB_SIZE - 1,
        )
    )  # fmt: skip


def adapted(lm, rank=8, seed=0):
    """The LM frozen, with an energy of zero that can be trained."""
    torch.manual_seed(seed)
    return MonArcForCausalLM.from_causal_lm(
        copy.deepcopy(lm), freeze_lm=True, energy_adapter_rank=rank, lm_loss_chunk_size=CHUNK_SIZE
    )


def grown(lm, seed=0):
    """The LM frozen, with one more layer that adds nothing yet; that layer and the final norm are trained."""
    model = small_lm(lm.config.num_hidden_layers + 1, seed)
    model.load_state_dict(lm.state_dict(), strict=False)
    layer = model.model.layers[-1]
    nn.init.zeros_(layer.self_attn.o_proj.weight)
    nn.init.zeros_(layer.mlp.down_proj.weight)
    model.requires_grad_(False)
    for part in (layer, model.model.norm):
        part.requires_grad_(True)
    return model


def saved_or_trained(folder: Path, fresh, fit, **settings):
    """The model ``fresh()`` after ``fit(model, **settings)``, taken from ``folder`` if it is there; and how it was trained."""
    notes = folder / "training.json"
    if notes.exists():
        training = json.loads(notes.read_text())
        kind = MonArcForCausalLM if (folder / "modeling_monarc.py").exists() else StableLmForCausalLM
        return kind.from_pretrained(folder), training
    model = fresh().train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    seconds = fit(model, **settings)
    training = {**settings, "cpu_seconds": round(seconds, 1), "trained_parameters": trained}
    model.save_pretrained(folder)
    notes.write_text(json.dumps(training))
    return model, training


# -------------------------------------------------------------------------------------------------------- comparison


class Comparison:
    """The saturated LM and everything it is turned into; one record per training in ``workdir`` and in the results."""

    def __init__(self, args):
        self.workdir, self.text = args.workdir, PackedText(args.eval_rows)
        fit = partial(self._fit, lm_loss, log=5000)
        folder = self.workdir / f"lm-{args.lm_steps}"
        self.lm, self.training = saved_or_trained(folder, small_lm, fit, steps=args.lm_steps, **LM_TRAINING)
        self.adapt_steps, self.lines = args.adapt_steps, []
        self.best = None  # of the continued LMs: gain and model
        self.costs = self._once(self.workdir / "step_costs.json", self._step_costs)

    def steps(self, row):
        """Steps of ``row`` that cost as much as the adapter's."""
        return round(self.adapt_steps / self.costs["sides"][row]["ratio_p50"])

    def continued(self, rate, seed):
        fit = partial(self._fit, lm_loss)
        self._lm_row("continue", partial(copy.deepcopy, self.lm), fit, rate=rate, seed=seed, **CONTINUED)

    def grown(self, rate, seed):
        assert torch.equal(self._logits(grown(self.lm, seed)), self._logits(self.lm)), "growing changed the LM"
        self._lm_row("grow", partial(grown, self.lm, seed), partial(self._fit, lm_loss), rate=rate, seed=seed, **GROWN)

    def adapted(self, rate, seed, by_trainer=False):
        row = "adapt_by_trainer" if by_trainer else "adapt"
        settings = dict(steps=self.adapt_steps, rate=rate, seed=seed, **ADAPTED)
        folder = self._folder(row, **settings)
        fit = partial(self._fit, elm_loss)
        if by_trainer:
            fit = partial(train_by_trainer, rows=self.text.train, folder=folder)
        before = self._logits(adapted(self.lm))
        model, training = saved_or_trained(folder, partial(adapted, self.lm, seed=seed), fit, **settings)
        same = torch.equal(before, self._logits(model)) and torch.equal(self._logits(self.lm), self._logits(model.lm))
        facts = {"logits_bit_identical": same}
        self._once(folder / "record.json", lambda: self._adapter_record(row, model, training, **facts))

    def _fit(self, loss, model, *, seed, log=1000, **settings):
        return train(model, loss(model, seed), self.text.train, seed=seed, log=log, **settings)

    def _lm_row(self, row, fresh, fit, **settings):
        settings["steps"] = self.steps(row)
        folder = self._folder(row, **settings)
        model, training = saved_or_trained(folder, fresh, fit, **settings)
        line = self._once(folder / "record.json", lambda: self._lm_record(row, model, training))
        if row == "continue" and (self.best is None or line["gain"] > self.best[0]):
            self.best = line["gain"], model

    def _folder(self, row, *, steps, rate, seed, **_):
        return self.workdir / f"{row}-{steps}-rate{rate:g}-seed{seed}"

    def _once(self, path, make):
        """What ``make()`` gives, kept in ``path``."""
        if not path.exists():
            line = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(line))
        self.lines.append(json.loads(path.read_text()))
        return self.lines[-1]

    def _logits(self, model):
        """Of 64 held-out rows ``(rows, seq, vocab)``."""
        input_ids = torch.tensor(self.text.held_out["input_ids"][:64])
        with torch.no_grad():
            return copy.deepcopy(model).eval()(input_ids=input_ids).logits

    def _step_costs(self):
        """CPU time of five steps of each row, in alternation."""
        models = {"adapt": adapted(self.lm), "continue": copy.deepcopy(self.lm), "grow": grown(self.lm)}
        settings = dict(rows=self.text.train, steps=5, seed=0, rate=1e-3, warmup=50, weight_decay=0.0)
        losses = {row: (elm_loss if row == "adapt" else lm_loss)(model.train(), 0) for row, model in models.items()}
        sides = {row: partial(train, models[row], losses[row], **settings) for row in models}
        sides = alternate(sides, repeats=40, warmup=3)
        return self._record("step_cost", metric="cpu_time_of_5_steps", unit="ms", sides=sides)

    def _lm_record(self, row, model, training):
        """Against the LM it came from: that LM with an energy of zero has Z = 1, so two samples say all."""
        result = evaluate_elm(
            adapted(self.lm), self.text.held_out, method="sampled", exact_top=1, num_samples=2,
            equal_compute_lm=model.eval(), batch_size=32, progress=False,
        )  # fmt: skip
        gain = {"gain": -result.gain_over_equal_compute_upper, "gain_se": result.gain_over_equal_compute_upper_se}
        nll = {"base_lm_nll": result.lm_nll, "lm_nll": result.equal_compute_lm_nll}
        nll["lm_nll_se"] = result.equal_compute_lm_nll_se
        return self._record(row, **training, **_rounded(nll | gain), **_counts(result))

    def _adapter_record(self, row, model, training, **facts):
        result = evaluate_elm(
            model, self.text.held_out, method="exact", equal_compute_lm=self.best and self.best[1].eval(),
            batch_size=32, max_rows=196, progress=False,
        )  # fmt: skip
        names = ("lm_nll", "lm_nll_se", "elm_nll", "elm_nll_se", "gain", "gain_se", "mean_log_z", "ess_fraction")
        names += ("equal_compute_lm_nll", "gain_over_equal_compute", "gain_over_equal_compute_se") if self.best else ()
        values = {name: getattr(result, name) for name in names} | {"claimed_nll": result.diagnostics["claimed_nll"]}
        return self._record(row, **training, **_rounded(values), **_counts(result), **facts)

    def _record(self, row, **fields):
        words = [word for word in sys.argv[1:] if word not in ("--workdir", str(self.workdir))]
        command = " ".join(["OMP_NUM_THREADS=1 python benchmarks/adapt_saturated_lm.py", *words])
        base = {"lm_steps": self.training["steps"], "lm_cpu_seconds": round(self.training["cpu_seconds"])}
        return record("adapt_saturated_lm", row=row, **fields, **base, command=command)


def _rounded(values):
    return {name: round(value, 6) for name, value in values.items()}


def _counts(result):
    return {"unit": "nats/token", "n": result.num_tokens, "num_documents": result.num_documents, "method": "exact"}


def table(lines):
    """The records as lines of text."""
    yield f"{'row':<18}{'rate':>8}{'seed':>5}{'steps':>7}{'CPU-s':>7}{'LM NLL':>9}{'ELM NLL':>9}{'gain':>9}{'SE':>8}"
    for line in lines:
        if "gain" in line:
            elm = f"{line['elm_nll']:.4f}" if "elm_nll" in line else "-"
            yield (
                f"{line['row']:<18}{line['rate']:>8g}{line['seed']:>5}{line['steps']:>7}{line['cpu_seconds']:>7.0f}"
                f"{line['lm_nll']:>9.4f}{elm:>9}{line['gain']:>+9.4f}{line['gain_se']:>8.4f}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/adapt_saturated_lm"), help="keeps all models")
    parser.add_argument("--lm-steps", type=int, default=60_000)
    parser.add_argument("--adapt-steps", type=int, default=5000, help="the other rows get as many as cost the same")
    parser.add_argument("--adapt-rates", type=float, nargs="*", default=[4e-3])
    parser.add_argument("--adapt-seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--continue-rates", type=float, nargs="*", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--grow-rates", type=float, nargs="*", default=[4e-3])
    parser.add_argument("--eval-rows", type=int, default=1000, help="held-out rows of 64 characters")
    parser.add_argument("--trainer", action="store_true", help="also adapt by ResidualEnergyTrainer")
    args = parser.parse_args()
    torch.set_num_threads(1)
    comparison = Comparison(args)
    for rate in args.continue_rates:  # first: the adapter is compared with the best of them
        comparison.continued(rate, seed=7)
    for rate in args.adapt_rates:
        for seed in args.adapt_seeds:
            comparison.adapted(rate, seed)
    for rate in args.grow_rates:
        comparison.grown(rate, seed=7)
    if args.trainer:
        comparison.adapted(args.adapt_rates[0], args.adapt_seeds[0], by_trainer=True)
    print("\n".join(table(comparison.lines)))


if __name__ == "__main__":
    main()
