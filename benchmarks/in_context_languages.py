"""In-context learning of random automata: LM, ELM, the LM trained on, nanoEBM by steps, n-grams of the row, the true automaton.

python benchmarks/in_context_languages.py [--seeds 0 1] [--languages 200] [--steps 1500] [--long-lm]

The models are those of `hf-elm automata`: the same rows for LM and nanoEBM, the ELM around the frozen LM, the LM trained on for the
CPU time that the energy took; with --long-lm also the LM trained from the start for the CPU time that the nanoEBM took. Test
languages occur in no training. One record per predictor and seed; standard errors are by language.
"""

import argparse
import tempfile
from pathlib import Path

from record import record

from hf_elm.in_context_languages import LanguageSettings
from hf_elm.in_context_run import InContextRun


def main():
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            sizes = {"steps": options.steps, "energy_steps": options.energy_steps, "languages": options.languages}
            first = InContextRun(LanguageSettings(), f"{scratch}/{seed}", **sizes, seed=seed)
            result = first.run()
            print(result)
            _record(result, seed, sizes)
            if options.long_lm:
                facts = {score.name: score for score in result.scores}
                ratio = facts["nanoEBM, system 1"].cpu_seconds / facts["LM"].cpu_seconds
                sizes |= {"steps": max(1, round(ratio * options.steps))}
                longer = InContextRun(LanguageSettings(), f"{scratch}/{seed}_long", ["lm"], **sizes, seed=seed).run()
                _record(longer, seed, sizes, only={"LM": "LM of nanoEBM's time"})


def _record(result, seed, sizes, only=None):
    for score in result.scores:
        if only is not None and score.name not in only:
            continue
        rounded = {name: round(value, 4) for name, value in score.means.items()}
        errors = {f"{name}_se": round(value, 4) for name, value in score.standard_errors.items()}
        late = {f"late_{name}": round(values[-1], 4) for name, values in score.quarters.items()}
        paired = {} if score.kl_difference is None else {
            "kl_minus_lm": round(score.kl_difference, 4), "kl_minus_lm_se": round(score.kl_difference_error, 4)
        }  # fmt: skip
        cost = {} if score.cpu_seconds is None else {
            "train_cpu_seconds": round(score.cpu_seconds, 1), "parameters": score.parameters
        }  # fmt: skip
        record(
            Path(__file__).stem, impl=(only or {}).get(score.name, score.name), metric="kl", unit="nats/character", **rounded,
            **errors, **late, **paired, **cost, n=result.num_languages, seed=seed, **sizes, languages_are=result.settings.to_dict(),
        )  # fmt: skip


def _options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--languages", type=int, default=200, help="test languages")
    parser.add_argument("--steps", type=int, default=InContextRun.steps)
    parser.add_argument("--energy-steps", type=int, default=InContextRun.energy_steps)
    parser.add_argument("--long-lm", action="store_true", help="also the LM trained as long as the nanoEBM")
    return parser.parse_args()


if __name__ == "__main__":
    main()
