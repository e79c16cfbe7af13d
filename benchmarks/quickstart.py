"""Records a finished quickstart: its likelihoods, what each part cost, and how long it all took.

hf-elm quickstart output_dir=runs/quickstart && python benchmarks/quickstart.py runs/quickstart
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
    values = {name + end: round(likelihood[name + end], 6) for name in FIELDS for end in ("", "_se")}
    values |= {name: round(likelihood[name], 4) for name in BITS}
    record(
        "quickstart", impl="monarc", unit="nats/token", metric="nll", method=likelihood["method"], shape=run["settings"],
        n=likelihood["num_tokens"], documents=likelihood["num_documents"], vocab=likelihood["vocab_size"], **values,
        cpu_seconds={name: round(value, 1) for name, value in run["cpu_seconds"].items()},
        wall_seconds=round(run["wall_seconds"], 1), run_threads=run["environment"]["threads"],
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"))
