"""LM loss, negatives and gradients in one chunked pass against the same from full logits: CPU time and peak memory.

python benchmarks/lm_head_loss.py [--repeats 10]
"""

import argparse

import torch
import torch.nn.functional as F
from record import alternate, peak_memory_mib, record
from torch import nn

from hf_elm.modeling.monarc.lm_head_loss import lm_head_pass


ROWS, VOCAB, HIDDEN = 1024, 50257, 256


def problem():
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN, VOCAB, bias=False)
    nn.init.normal_(head.weight, std=1 / 16)
    return head, torch.randn(ROWS, HIDDEN, requires_grad=True), torch.randint(0, VOCAB, (ROWS,))


def full_logits(head, hidden, targets):
    """The plain way: all logits, their log-softmax, multinomial negatives, autograd."""
    log_probs = F.log_softmax(head(hidden), -1)
    loss = F.nll_loss(log_probs, targets)
    negatives = torch.multinomial(log_probs.detach().exp(), 1)
    negative_log_probs = log_probs.detach().gather(1, negatives)
    loss.backward()
    return loss, negatives, negative_log_probs


def chunked(head, hidden, targets):
    out = lm_head_pass(head, hidden, targets, torch.full((ROWS,), 1 / ROWS), num_samples=1)
    out.loss.backward()
    return out.loss, out.candidates, out.candidate_log_probs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    head, hidden, targets = problem()
    losses, grads = [], []
    for side in (full_logits, chunked):
        head.weight.grad = hidden.grad = None
        losses.append(side(head, hidden, targets)[0].item())
        grads.append(torch.cat([head.weight.grad.flatten(), hidden.grad.flatten()]))
    difference = ((grads[0] - grads[1]).norm() / grads[0].norm()).item()
    code = (
        "import sys; sys.path.insert(0, 'benchmarks')\nimport torch; torch.set_num_threads(1)\nfrom lm_head_loss import *\n"
        "p = problem(); p[0].weight.grad = torch.zeros_like(p[0].weight); mark(); {side}(*p); mark()\n"
    )
    sides = {
        "full_logits": lambda: full_logits(head, hidden, targets),
        "chunked": lambda: chunked(head, hidden, targets),
    }
    shape = {"rows": ROWS, "vocab": VOCAB, "hidden": HIDDEN, "chunk": 128, "samples": 1}
    for impl, timing in alternate(sides, args.repeats).items():
        peaks = [peak_memory_mib(code.format(side=impl)) for _ in range(3)]
        record(
            "lm_head_loss", impl=impl, shape=shape, dtype="float32", metric="cpu_time", unit="ms", **timing,
            peak_memory_mib=round(sorted(peaks)[1], 1), loss_difference=abs(losses[0] - losses[1]), gradient_difference=difference,
        )  # fmt: skip


if __name__ == "__main__":
    main()
