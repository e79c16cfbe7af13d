"""M2-BERT 80M against transformers' BERT-base with SDPA: wall time and peak memory, and a 32k-token document on the CPU.

Both are encoders with random weights of their released sizes and as many positions as the row has tokens. Times are wall time
(two threads leave no better clock), of runs that take turns; run it on an idle machine. Memory is the peak resident size of a
fresh process, the interpreter and the libraries included. A training step is a forward and a backward pass, gradients kept.

    python benchmarks/m2_bert_model.py [--lengths 512 2048 8192] [--training 512] [--threads 2] [--repeats 9] [--no-document]

About 7 minutes on two idle cores.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from record import alternate, record
from transformers import BertConfig, BertModel

from hf_elm.modeling.m2_bert import M2BertConfig, M2BertModel


def build(impl, length):
    torch.manual_seed(0)
    if impl == "m2_bert_80m":
        return M2BertModel(M2BertConfig.preset("80m", max_position_embeddings=length)).eval()
    config = BertConfig(max_position_embeddings=length, attn_implementation="sdpa")
    return BertModel(config).eval()


IMPLS = ("bert_base", "m2_bert_80m")


def timed(run):
    """Wall seconds of one call."""

    def call():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return call


@torch.no_grad()
def evaluate(model, input_ids):
    model(input_ids=input_ids)


def train(model, input_ids):
    model.zero_grad(set_to_none=True)
    states = model(input_ids=input_ids).last_hidden_state
    (states * torch.linspace(-1, 1, states.shape[-1])).mean().backward()


def compare(metric, run, length, repeats):
    ids = torch.randint(1000, 30000, (1, length))
    models = {impl: build(impl, length).train(run is train) for impl in IMPLS}
    sides = {impl: timed(lambda m=model: run(m, ids)) for impl, model in models.items()}
    for impl, timing in alternate(sides, repeats).items():
        record(
            "m2_bert_model", impl=impl, shape={"batch": 1, "seq": length}, dtype="float32", metric=metric, unit="ms",
            speedup=round(1 / timing["ratio_p50"], 3), **timing,
        )  # fmt: skip


def peaks(length, threads):
    """Peak resident memory of a training step, after a first one, MiB."""
    values = {impl: _peak_mib(_TRAIN.format(impl=impl, length=length, threads=threads)) for impl in IMPLS}
    for impl, value in values.items():
        record(
            "m2_bert_model", impl=impl, shape={"batch": 1, "seq": length}, metric="training_peak_memory", unit="MiB",
            value=round(value), of_bert=round(value / values["bert_base"], 3),
        )  # fmt: skip


def document(threads, length=32768):
    """Peak resident memory of embedding one document with the 80M-32k model, MiB."""
    value = _peak_mib(_DOCUMENT.format(length=length, threads=threads))
    record(
        "m2_bert_model", impl="m2_bert_80m_32k", shape={"batch": 1, "seq": length}, metric="embedding_peak_memory",
        unit="MiB", value=round(value),
    )  # fmt: skip


_TRAIN = """
import torch; torch.set_num_threads({threads})
from m2_bert_model import build, train
model = build("{impl}", {length}).train()
for _ in range(2):
    train(model, torch.randint(1000, 30000, (1, {length})))
"""
_DOCUMENT = """
import torch; torch.set_num_threads({threads})
from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForSentenceEmbedding
model = M2BertForSentenceEmbedding(M2BertConfig.preset("80m-32k")).eval()
with torch.no_grad():
    embedding = model(torch.randint(1000, 30000, (1, {length}))).sentence_embedding
assert embedding.shape == (1, 768) and embedding.isfinite().all()
"""


def _peak_mib(code):
    code += "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    here = Path(__file__).parent
    path = f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]\n"
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 2048, 8192])
    parser.add_argument("--training", type=int, nargs="*", default=[512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-document", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for length in args.lengths:
        compare("wall_time", evaluate, length, args.repeats if length <= 2048 else 3)
    for length in args.training:
        compare("training_wall_time", train, length, args.repeats)
        peaks(length, args.threads)
    if not args.no_document:
        document(args.threads)


if __name__ == "__main__":
    main()
