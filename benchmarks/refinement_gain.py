"""How much thinking helps: nanoEBM against a GPT of as many parameters, trained on the same batches, for several seeds.

1. ``nanoebm``: the trunk with the free energy; held-out loss of system 1 and after 1, 2, 4 and 8 steps of thinking;
2. ``gpt``: the same trunk with more layers in the place of the energy, without refinement, for as many steps;
3. ``gpt_equal_compute``: that GPT trained for the CPU time that nanoEBM took with the same seed, with a schedule of its own.

All rows are trained by one plain loop with the loss, the decayed parameters and the learning-rate schedule of
`RefinementTrainer`; a seed fixes the initial weights and the order of the data, which is the same for all rows. The last tenth
of the text is held out: every character of it is predicted once, in windows of the length trained on. A row whose record has
the same settings is not repeated, unless ``--again`` is given.

    OMP_NUM_THREADS=1 python benchmarks/refinement_gain.py tinyshakespeare.txt [--sizes tiny small --seeds 0 1 2]
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from record import RESULTS, alternate, record
from torch import nn
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from hf_elm.modeling.nano_ebm.configuration_nano_ebm import PUBLISHED, NanoEBMConfig
from hf_elm.modeling.nano_ebm.modeling_nano_ebm import NanoEBMForRefinement


BENCH, ROWS = "refinement_gain", ("nanoebm", "gpt", "gpt_equal_compute")
EVALUATED_STEPS = (1, 2, 4, 8)
WARMUP_STEPS, FLOOR, WEIGHT_DECAY, BETAS, LARGEST_GRADIENT = 100, 0.1, 0.1, (0.9, 0.95), 1.0
PARAMETER_TOLERANCE = 0.03
ENERGY_FIELDS = {"energy_units", "energy_heads", "energy_context", "energy_power", "energy_feedback"}
REFINEMENT_FIELDS = sorted(set(PUBLISHED) | ENERGY_FIELDS)  # what a record says of the configuration


@dataclass(frozen=True)
class Size:
    """Shapes of both models and how long they are trained; ``layers`` of nanoEBM's trunk and ``gpt_layers`` of the GPT."""

    hidden_size: int
    heads: int
    layers: int
    gpt_layers: int
    length: int
    batch_size: int
    steps: int
    rate: float


SIZES = {
    "tiny": Size(hidden_size=64, heads=4, layers=2, gpt_layers=3, length=64, batch_size=16, steps=800, rate=3e-3),
    "small": Size(hidden_size=128, heads=4, layers=3, gpt_layers=4, length=128, batch_size=16, steps=1000, rate=2e-3),
    "medium": Size(
        hidden_size=192, heads=6, layers=5, gpt_layers=6, length=256, batch_size=16, steps=1000, rate=1.5e-3
    ),
}


class CharacterText:
    """A text file as character indices: ``train`` (first nine tenths) and ``held_out``, both ``(characters)``."""

    def __init__(self, path: Path):
        text = path.read_text(encoding="utf-8")
        index = {character: i for i, character in enumerate(sorted(set(text)))}
        indices = torch.tensor([index[character] for character in text])
        self.vocab_size, cut = len(index), int(0.9 * len(indices))
        self.train, self.held_out = indices[:cut], indices[cut:]

    def batch(self, size: Size, generator: torch.Generator) -> torch.Tensor:
        """Random windows of the training text, ``(batch, length)``."""
        starts = torch.randint(len(self.train) - size.length + 1, (size.batch_size, 1), generator=generator)
        return self.train[starts + torch.arange(size.length)]

    def held_out_windows(self, length: int) -> torch.Tensor:
        """``(windows, length)``; each begins with the last character of the one before, so that every one is a target once."""
        return self.held_out.unfold(0, length, length - 1)


# ------------------------------------------------------------------------------------------------ models and training


def nanoebm(size: Size, vocab_size: int, **fields) -> NanoEBMForRefinement:
    """Trunk and free energy with the package's defaults, except for ``fields``."""
    config = NanoEBMConfig(
        vocab_size=vocab_size, hidden_size=size.hidden_size, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, max_position_embeddings=size.length, **fields,
    )  # fmt: skip
    return NanoEBMForRefinement(config)


def gpt(size: Size, vocab_size: int) -> NanoEBMForRefinement:
    """The same trunk with ``gpt_layers`` layers; the linear energy without thinking is a plain language model."""
    fields = {"energy_type": "linear", "use_thinking": False, "think_lr_learnable": False}
    return nanoebm(replace(size, layers=size.gpt_layers), vocab_size, **fields)


def num_parameters(model) -> int:
    """Parameters that learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def optimizer_and_schedule(model, size: Size, steps: int):
    """AdamW and cosine schedule as `RefinementTrainer` makes them."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.dim() >= 2 and id(p) not in tables]
    others = [p for p in parameters if p.dim() < 2 or id(p) in tables]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=size.rate, betas=BETAS)
    return optimizer, get_cosine_with_min_lr_schedule_with_warmup(optimizer, WARMUP_STEPS, steps, min_lr_rate=FLOOR)


def train(model, text: CharacterText, size: Size, steps: int, seed: int, log: int = 500) -> float:
    """Trains ``model`` in place; CPU seconds."""
    optimizer, schedule = optimizer_and_schedule(model.train(), size, steps)
    generator = torch.Generator().manual_seed(1000 + seed)
    start = time.process_time()
    for step in range(1, steps + 1):
        input_ids = text.batch(size, generator)
        loss = model(input_ids=input_ids, labels=input_ids).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if step % log == 0:
            print(f"  step {step} loss {loss.item():.4f} cpu {time.process_time() - start:.0f} s", flush=True)
    return time.process_time() - start


@torch.no_grad()
def held_out_nll(model, text: CharacterText, size: Size, max_steps: int, batch_size: int = 64) -> tuple[list, int]:
    """Mean negative log-likelihood after 0, 1, … ``max_steps`` steps of thinking, nats/character, and how many were predicted."""
    model.eval()
    total, count = torch.zeros(max_steps + 1, dtype=torch.float64), 0
    for input_ids in text.held_out_windows(size.length).split(batch_size):
        out = model(
            input_ids=input_ids, use_thinking=max_steps > 0, think_steps=max_steps, output_trajectory=True,
            output_energies=False,
        )  # fmt: skip
        targets = input_ids[:, 1:, None].expand(len(out.trajectory), -1, -1, 1)
        nll = -out.trajectory[:, :, :-1].log_softmax(-1).gather(-1, targets)
        total += nll.double().flatten(1).sum(1)
        count += input_ids[:, 1:].numel()
    return (total / count).tolist(), count


# -------------------------------------------------------------------------------------------------------- comparison


class Comparison:
    """Rows of one size; ``lines`` are their records, old ones where the settings are the same."""

    def __init__(self, text: CharacterText, name: str, fields: dict, again: bool):
        self.text, self.name, self.size, self.fields, self.again = text, name, SIZES[name], fields, again
        self.lines: list[dict] = []
        config = self._model("nanoebm").config
        self.config = {field: getattr(config, field) for field in REFINEMENT_FIELDS}
        self._check_parameters()

    def add(self, row: str, seed: int) -> None:
        """Takes the record of ``row``, or trains, evaluates and records it."""
        steps = self.size.steps
        if row == "gpt_equal_compute":
            steps = round(steps * self._step_cost()["sides"]["nanoebm"]["ratio_p50"])
        settings = asdict(self.size) | {"steps": steps}
        if row == "nanoebm":
            settings["config"] = self.config
        self.lines.append(self._saved(row, seed=seed, settings=settings) or self._measured(row, seed, settings))

    def _measured(self, row, seed, settings):
        torch.manual_seed(seed)
        model = self._model(row)
        print(f"{self.name}, seed {seed}, {row}: {settings['steps']} steps", flush=True)
        seconds = train(model, self.text, self.size, settings["steps"], seed)
        nll, count = held_out_nll(model, self.text, self.size, EVALUATED_STEPS[-1] if row == "nanoebm" else 0)
        values = {"nll_s1": nll[0]}
        if row == "nanoebm":
            trained = model.config.think_steps
            values |= {"nll_s2": nll[trained], "delta_nll": nll[trained] - nll[0]}
            values |= {f"nll_{k}_steps": nll[k] for k in EVALUATED_STEPS}
            values |= {f"alpha_{k}": alpha for k, alpha in enumerate(model.step_sizes().tolist(), start=1)}
        values = {key: round(value, 5) for key, value in values.items()}
        return self._record(
            row, seed=seed, parameters=num_parameters(model), cpu_seconds=round(seconds, 1), **values,
            unit="nats/character", n=count, settings=settings,
        )  # fmt: skip

    def _step_cost(self):
        """CPU time of five steps of training, nanoEBM and GPT in alternation."""
        settings = asdict(self.size) | {"config": self.config}
        if saved := self._saved("step_cost", settings=settings):
            return saved
        sides = {row: partial(train, self._model(row), self.text, self.size, 5, 0) for row in ("gpt", "nanoebm")}
        return self._record(
            "step_cost", metric="cpu_time_of_5_steps", unit="ms", sides=alternate(sides, repeats=20, warmup=2),
            settings=settings,
        )  # fmt: skip

    def _model(self, row):
        if row == "nanoebm":
            return nanoebm(self.size, self.text.vocab_size, **self.fields)
        return gpt(self.size, self.text.vocab_size)

    def _saved(self, row, **same):
        """The latest record of ``row`` whose fields are those of ``same``; None if there is none or all is to be repeated."""
        path, same = RESULTS / f"{BENCH}.jsonl", {"row": row, "size": self.name, **same}
        if self.again or not path.exists():
            return None
        lines = map(json.loads, path.read_text().splitlines())
        return next(
            (x for x in reversed(list(lines)) if all(x.get(key) == value for key, value in same.items())), None
        )

    def _record(self, row, **fields):
        command = " ".join(["OMP_NUM_THREADS=1 python benchmarks/refinement_gain.py", *command_words()])
        return record(BENCH, row=row, size=self.name, **fields, command=command)

    def _check_parameters(self):
        ours, theirs = (num_parameters(self._model(row)) for row in ("nanoebm", "gpt"))
        if abs(ours / theirs - 1) > PARAMETER_TOLERANCE:
            raise ValueError(
                f"both models must have as many parameters within {PARAMETER_TOLERANCE:.0%}, got {ours:,} for nanoEBM and "
                f"{theirs:,} for the GPT of size {self.name}; change --set energy_units=… or the layers of the size."
            )


def command_words() -> list[str]:
    """The arguments of this run, the corpus without its folder."""
    return [Path(word).name if Path(word).is_file() else word for word in sys.argv[1:]]


def table(lines: list[dict]):
    """The records as lines of text; ``vs GPT`` is the difference to the GPT of the same size, seed and number of steps."""
    names = [f"{k} steps" if k > 1 else "1 step" for k in EVALUATED_STEPS]
    heads = ["S1", "S2", "S2-S1", *names, "vs GPT"]
    yield f"{'size':<8}{'row':<19}{'seed':>5}{'steps':>7}{'CPU-s':>7}" + "".join(f"{head:>9}" for head in heads)
    base = {(line["size"], line["seed"]): line["nll_s1"] for line in lines if line["row"] == "gpt"}
    means: dict[tuple, list] = {}
    for line in lines:
        best = line.get("nll_s2", line["nll_s1"])
        keys = ("nll_s1", "nll_s2", "delta_nll", *(f"nll_{k}_steps" for k in EVALUATED_STEPS))
        gap = best - base.get((line["size"], line["seed"]), float("nan"))
        values = [line.get(key, float("nan")) for key in keys] + [gap]
        means.setdefault((line["size"], line["row"]), []).append(values)
        steps = line["settings"]["steps"]
        yield _table_line(
            line["size"], line["row"], str(line["seed"]), f"{steps}", f"{line['cpu_seconds']:.0f}", values
        )
    for (size, row), several in means.items():
        if len(several) > 1:
            yield _table_line(size, row, "mean", "", "", torch.tensor(several).mean(0).tolist())


def _table_line(size, row, seed, steps, seconds, values):
    cells = "".join(f"{value:>9.4f}" if value == value else f"{'-':>9}" for value in values)
    return f"{size:<8}{row:<19}{seed:>5}{steps:>7}{seconds:>7}{cells}"


def field_value(text: str) -> tuple[str, object]:
    """``name=value`` with a JSON value, or else a word."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value.lower() if value in ("True", "False", "None") else value)
    except json.JSONDecodeError:
        return name, value


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path, help="text file, such as Tiny Shakespeare")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--set", type=field_value, nargs="*", default=[], help="fields of NanoEBMConfig, name=value")
    parser.add_argument("--again", action="store_true", help="repeat what has a record")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text, lines = CharacterText(args.corpus), []
    for name in args.sizes:
        comparison = Comparison(text, name, dict(args.set), args.again)
        for seed in args.seeds:
            for row in args.rows:
                comparison.add(row, seed)
        lines += comparison.lines
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
