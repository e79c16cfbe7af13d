"""One M2-BERT layer at d = 768 against the reference's formula written plainly: CPU time of evaluation and training, memory.

The naive layer works token-first, makes its filters in every call, transforms the whole (batch, hidden, 2 seq) tensor twice and
lets autograd keep what it wants. Ours is timed with remembered spectra and without; ``spectra_mib`` is what remembering takes
for one layer. A model of 12 layers has 320 MiB for all of them unless configured otherwise: it remembers rows up to 2,048 tokens.

Two machine rates are taken in the same rounds: ``gemm`` is the layer's dense work (both projections, both block-diagonal
products; 8.26 MFLOP per token) as plain products of its own shapes, ``square`` a product of 2,048 x 2,048 matrices.
``gemm_share`` and ``square_share`` are the layer's dense work per second over these rates, as medians of the rounds.

    python benchmarks/m2_bert_layer.py [--lengths 512 2048 8192 32768] [--training 512 2048] [--memory 2048 8192 32768]
        [--repeats 15]

About 6 minutes on an idle core. Rounds get fewer with the length: repeats at 512 and 2,048, a third at 8,192, 3 beyond.
"""

import argparse
import copy
import time

import torch
import torch.nn.functional as F
from record import peak_memory_mib, quantiles, record
from torch import nn

from hf_elm.modeling.m2_bert import M2BertConfig
from hf_elm.modeling.m2_bert.encoder_layer import M2BertLayer
from hf_elm.modeling.m2_bert.modeling_m2_bert import M2BertModel


class NaiveLayer(nn.Module):
    """The same weights, the reference's formula: x ``(batch, seq, hidden)`` -> the same shape."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        hidden = layer.mixer.out_proj.out_features
        self.short = nn.Conv1d(3 * hidden, 3 * hidden, 3, padding=2, groups=3 * hidden)
        with torch.no_grad():
            self.short.weight.copy_(layer.mixer.short_conv.weight[:, None])
            self.short.bias.copy_(layer.mixer.short_conv.bias)

    def forward(self, x):
        return self.mlp(self.mixer(x))

    def mixer(self, u):
        mixer, seq = self.layer.mixer, u.shape[1]
        p = self.short(mixer.in_proj(u).transpose(1, 2))[..., :seq]
        x1, x2, v = p.split(u.shape[2], 1)
        y = x2 * self.convolve(v * x1, mixer.gated_filter)
        y = y + self.convolve(u.transpose(1, 2), mixer.residual_filter)
        return mixer.out_proj(y.transpose(1, 2))

    def convolve(self, x, filter):
        seq = x.shape[-1]
        directions = [self.taps(filter, i, seq) for i in range(2)]
        kernel = F.pad(directions[0], (0, seq)) + F.pad(directions[1].flip(-1), (seq, 0))
        spectrum = torch.fft.rfft(kernel, n=2 * seq) * torch.fft.rfft(x, n=2 * seq)
        return torch.fft.irfft(spectrum, n=2 * seq)[..., :seq] + x * filter.skip[:, None]

    def taps(self, filter, i, seq):
        h = torch.sin(filter.frequency * F.linear(filter.positions[:seq], filter.weight_in[i], filter.bias_in[i]))
        for k in range(2):
            h = torch.sin(filter.frequency * F.linear(h, filter.weight_mid[k, i], filter.bias_mid[k, i]))
        return F.linear(h, filter.weight_out[i]).T * filter._decay(seq, h.dtype)(slice(None))

    def mlp(self, x):
        mlp = self.layer.mlp
        a, b = self.blocks(x, mlp.up).chunk(2, -1)
        h = mlp.dropout(F.gelu(a) * b)
        return mlp.norm(self.blocks(h, mlp.down) + mlp.down.bias + x)

    def blocks(self, x, linear):
        batch, seq, _ = x.shape
        blocks, _, columns = linear.weight.shape
        x = x.reshape(batch * seq, blocks, columns).transpose(0, 1)
        y = torch.bmm(x, linear.weight.transpose(1, 2))
        return y.transpose(0, 1).reshape(batch, seq, -1)


def build(length):
    torch.manual_seed(0)
    config = M2BertConfig.preset("80m", max_position_embeddings=length, num_hidden_layers=1, vocab_size=8)
    layer = M2BertModel(config).encoder.layers[0].eval()
    assert isinstance(layer, M2BertLayer)
    return layer, NaiveLayer(layer)


def gemm(length, hidden=768):
    """The layer's dense work as plain products of the same shapes."""
    x, wide = torch.randn(hidden, length), torch.randn(4 * hidden, length)
    weights = torch.randn(3 * hidden, hidden), torch.randn(hidden, hidden)
    up, down = torch.randn(4, 2 * hidden, hidden // 4), torch.randn(4, hidden // 4, hidden)

    def run():
        weights[0] @ x
        weights[1] @ x
        up @ x.view(4, hidden // 4, -1)
        down @ wide.view(4, hidden, -1)

    return run


def dense_flops(length, hidden=768):
    """Multiplications and additions of `gemm`."""
    return 2 * length * (4 * hidden * hidden + 4 * (2 * hidden + hidden) * hidden // 4 + hidden * hidden)


def square(size=2048):
    a, b = torch.randn(size, size), torch.randn(size, size)
    return lambda: a @ b


def step(layer, x):
    layer.zero_grad(set_to_none=True)
    (layer(x) * x).mean().backward()


def rounds(sides, repeats):
    """CPU seconds of each side in each round; the sides take turns."""
    for side in sides.values():
        side()
    times = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.process_time()
            side()
            times[name].append(time.process_time() - start)
    return times


def save(bench, length, times, **fields):
    """One record per side, with the ratio of the first side's time to its own in each round."""
    base = next(iter(times.values()))
    for impl, series in times.items():
        shares = {}
        if "gemm" in times and impl not in ("gemm", "square"):
            square_rate = [2 * 2048**3 / t for t in times["square"]]
            shares = {
                **quantiles([g / t for g, t in zip(times["gemm"], series, strict=True)], "gemm_share_"),
                **quantiles(
                    [dense_flops(length) / t / rate for t, rate in zip(series, square_rate, strict=True)],
                    "square_share_",
                ),
            }
        record(
            bench, impl=impl, shape={"batch": 1, "seq": length, "hidden": 768}, dtype="float32", metric="cpu_time", unit="ms",
            n=len(series), **quantiles([1e3 * t for t in series], ""),
            **quantiles([b / t for b, t in zip(base, series, strict=True)], "speedup_"), **shares, **fields,
        )  # fmt: skip


@torch.no_grad()
def evaluation(length, repeats):
    layer, naive = build(length)
    layer.mixer.spectra.max_bytes = 2**31
    forgetful = copy.deepcopy(layer)
    forgetful.mixer.spectra.max_bytes = 0
    x = torch.randn(1, length, 768)
    first = x.permute(2, 0, 1).contiguous()
    difference = (layer(first).permute(1, 2, 0) - naive(x)).abs().max().item()
    sides = {
        "naive": lambda: naive(x), "ours, spectra remembered": lambda: layer(first), "ours": lambda: forgetful(first),
        "gemm": gemm(length), "square": square(),
    }  # fmt: skip
    mib = round(layer.mixer.spectra.num_bytes / 2**20, 1)
    save("m2_bert_layer", length, rounds(sides, repeats), difference=difference, spectra_mib=mib)


def training(length, repeats):
    layer, naive = build(length)
    layer.train()
    x = torch.randn(1, length, 768)
    first = x.permute(2, 0, 1).contiguous()
    sides = {"naive": lambda: step(naive, x), "ours": lambda: step(layer, first)}
    save("m2_bert_layer_training", length, rounds(sides, repeats))


def memory(length):
    """Growth of the peak over one call in evaluation, the output included."""
    values = {impl: peak_memory_mib(_PEAK.format(length=length, impl=impl)) for impl in ("naive", "ours")}
    for impl, value in values.items():
        record(
            "m2_bert_layer_memory", impl=impl, shape={"batch": 1, "seq": length, "hidden": 768}, metric="transient",
            unit="MiB", value=round(value, 1), of_naive=round(value / values["naive"], 3),
        )  # fmt: skip


_PEAK = """
import sys; sys.path.insert(0, "benchmarks")
import torch; torch.set_num_threads(1)
from m2_bert_layer import build
layer, naive = build({length})
layer.mixer.spectra.max_bytes = 0
x = torch.randn(1, {length}, 768)
first = x.permute(2, 0, 1).contiguous()
with torch.no_grad():
    naive(x[:, :64]), layer(first[..., :64].contiguous())  # libraries' own first-use memory
    mark()
    (naive(x) if "{impl}" == "naive" else layer(first))
    mark()
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 2048, 8192, 32768])
    parser.add_argument("--training", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--memory", type=int, nargs="*", default=[2048, 8192, 32768])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for length in args.lengths:
        evaluation(length, args.repeats if length <= 2048 else max(3, args.repeats // 3) if length <= 8192 else 3)
    for length in args.training:
        training(length, args.repeats)
    for length in args.memory:
        memory(length)


if __name__ == "__main__":
    main()
