"""One M2-BERT layer at d = 768 against the reference's formula written plainly: CPU time of evaluation and of training.

The naive layer works token-first, makes its filters in every call, transforms the whole (batch, hidden, 2 seq) tensor twice and
lets autograd keep what it wants. ``gemm_share`` is the dense work (both projections and both block-diagonal products) at the
machine's own matrix rate, measured in the same rounds, over the layer's time.

    python benchmarks/m2_bert_layer.py [--lengths 512 2048 8192] [--repeats 10] [--no-training]
"""

import argparse

import torch
import torch.nn.functional as F
from record import alternate, peak_memory_mib, record
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


def step(layer, x):
    layer.zero_grad(set_to_none=True)
    layer(x).square().mean().backward()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 2048, 8192])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for length in args.lengths:
        layer, naive = build(length)
        x = torch.randn(1, length, 768)
        first = x.permute(2, 0, 1).contiguous()
        with torch.no_grad():
            difference = (layer(first).permute(1, 2, 0) - naive(x)).abs().max().item()
            sides = {"naive": lambda n=naive, x=x: n(x), "ours": lambda m=layer, x=first: m(x), "gemm": gemm(length)}
            _record(
                "m2_bert_layer", length, alternate(sides, args.repeats), difference=difference, cached_spectra=True
            )
            layer.mixer.spectra.max_bytes = 0
            layer.mixer.spectra.clear()
            _record(
                "m2_bert_layer", length, alternate(sides, args.repeats), difference=difference, cached_spectra=False
            )
        if not args.no_training:
            layer.train()
            sides = {"naive": lambda n=naive, x=x: step(n, x), "ours": lambda m=layer, x=first: step(m, x)}
            _record("m2_bert_layer_training", length, alternate(sides, args.repeats))
        if not args.no_memory:
            for impl in ("naive", "ours"):
                peak = peak_memory_mib(_PEAK.format(length=length, impl=impl))
                shape = {"batch": 1, "seq": length, "hidden": 768}
                record(
                    "m2_bert_layer_memory",
                    impl=impl,
                    shape=shape,
                    metric="transient",
                    unit="MiB",
                    value=round(peak, 1),
                )


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


def _record(bench, length, timings, **fields):
    dense = timings.get("gemm", {}).get("p50")
    for impl, timing in timings.items():
        share = {"gemm_share": round(dense / timing["p50"], 3)} if dense and impl != "gemm" else {}
        record(
            bench, impl=impl, shape={"batch": 1, "seq": length, "hidden": 768}, dtype="float32", metric="cpu_time", unit="ms",
            speedup=round(1 / timing["ratio_p50"], 3), **share, **timing, **fields,
        )  # fmt: skip


if __name__ == "__main__":
    main()
