"""Records a finished quickstart: its likelihoods, what each part cost, and how long it all took.

hf-elm quickstart output_dir=runs/quickstart && python benchmarks/quickstart.py runs/quickstart
hf-elm quickstart model=nano-ebm output_dir=runs/thinking && python benchmarks/quickstart.py runs/thinking
"""

import json
import sys
from pathlib import Path

from record import record


FIELDS = ("lm_nll", "elm_nll", "gain", "equal_compute_lm_nll", "gain_over_equal_compute")
BITS = ("lm_bits_per_byte", "elm_bits_per_byte")


def main(folder):
    likelihood = json.loads((folder / "likelihood.json").read_text())
    run = json.loads((folder / "quickstart.json").read_text())
    common = {
        "unit": "nats/token",
        "metric": "nll",
        "shape": run["settings"],
        "n": likelihood["num_tokens"],
        "documents": likelihood["num_documents"],
        "vocab": likelihood["vocab_size"],
        "cpu_seconds": {name: round(value, 1) for name, value in run["cpu_seconds"].items()},
        "wall_seconds": round(run["wall_seconds"], 1),
        "run_threads": run["environment"]["threads"],
    }
    if "s2_nll" in likelihood:
        record("quickstart_nano_ebm", impl="nano_ebm", **common, **_thinking(likelihood, run))
        return
    values = {name + end: round(likelihood[name + end], 6) for name in FIELDS for end in ("", "_se")}
    values |= {name: round(likelihood[name], 4) for name in BITS}
    record("quickstart", impl="monarc", method=likelihood["method"], **common, **values)


def _thinking(likelihood, run):
    """The estimates of a nanoEBM's quickstart, the sizes of its models and the steps of the GPT of equal compute."""
    values = {name: round(value, 6) for name, value in likelihood.items() if isinstance(value, float)}
    counts = {name: likelihood[name] for name in ("parameters", "think_steps", "more_think_steps")}
    return values | counts | {"equal_compute_steps": run["equal_compute_steps"]}


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"))
