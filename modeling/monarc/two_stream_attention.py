"""Two-stream attention: candidate tokens read the keys and values of the true sequence.

The *true* stream is the plain causal pass over ``input_ids``; it leaves its keys and values, after rotary embedding, in a
`StreamStore`. A *candidate* stream holds one alternative token per position. Row t of it attends to the true keys before t
and to itself, in one softmax (MonArc, "Methods"):

    out_t = softmax([q_t . K_{<t}, q_t . k_t]) [V_{<t} ; v_t]

so that candidates never see each other and one pass scores an alternative for every position at once.

The streams reach any transformers decoder through its attention registry: `TWO_STREAM` is registered as an attention
implementation, and `stream_pass` selects it for the duration of one decoder call. Three backends compute the candidate
attention, equal in outputs and gradients:

* ``merged``: flash attention over the prefix, the self term merged through the log-sum-exp; no T x T tensor (CPU kernel).
* ``sdpa``: one masked `scaled_dot_product_attention` over [prefix ; self]; any device, supports attention dropout.
* ``eager``: the formula above, written out.
"""

import functools
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


# transformers' registry is one for the process, which may hold this file several times: each Hub repository and commit has its own
TWO_STREAM = f"monarc_two_stream_{zlib.crc32(__name__.encode()):08x}"
BACKENDS = ("merged", "sdpa", "eager")
MASKED_SCORE = -1e30  # finite: a fully masked row keeps a finite log-sum-exp, and its weight underflows to exactly 0


@dataclass
class StreamStore:
    """Keys and values of the true stream, per layer: ``(batch, kv_heads, seq, head_dim)`` each."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Stream:
    """What the attention function and the hooks need to know about the decoder call in progress.

    Attributes:
        kind: ``"true"`` (record keys and values), ``"candidate"`` (read them) or ``"plain"`` (an ordinary decoder call whose
            final state is wanted).
        store: the true stream's keys and values; None for ``"plain"``.
        backend: one of `BACKENDS`, or ``"auto"``.
        mask: boolean, True = visible. True stream: ``(batch, 1, seq, seq)`` or None for plain causal. Candidate stream: the
            visible true keys of every query, ``(batch, 1, queries, seq)``, or None for "all strictly earlier positions".
        recording: False while gradient checkpointing recomputes a layer.
        adapter_rows: which sequence positions are candidates, for the energy adapter: all, ``slice(start, sequence length)``, or
            None = none of them.
        final_state: set by the hook on the decoder's final norm: its input, ``(rows, queries, hidden)``.
    """

    kind: str
    store: StreamStore | None = None
    backend: str = "auto"
    mask: Tensor | None = None
    recording: bool = True
    adapter_rows: slice | None = None
    final_state: Tensor | None = None


_STREAM: ContextVar[Stream | None] = ContextVar("monarc_stream", default=None)


def current_stream() -> Stream | None:
    """The stream of the decoder call in progress, or None outside `stream_pass`."""
    return _STREAM.get()


@contextmanager
def stream_pass(stream: Stream, config) -> Iterator[Stream]:
    """Runs the decoder calls inside it as ``stream``; ``config`` is the decoder's own, whose attention is switched meanwhile."""
    token = _STREAM.set(stream)
    implementation = config._attn_implementation
    if stream.kind != "plain":
        config._attn_implementation = TWO_STREAM
    try:
        yield stream
    finally:
        config._attn_implementation = implementation
        _STREAM.reset(token)


def checkpoint_contexts(config):
    """``context_fn`` of gradient checkpointing: a recomputed layer must see the stream of its first call, and not record again."""
    stream = _STREAM.get()
    if stream is None:
        return nullcontext(), nullcontext()
    return nullcontext(), stream_pass(replace(stream, recording=False), config)


def checkpoint_with_streams(checkpoint, config):
    """``checkpoint`` (a `torch.utils.checkpoint.checkpoint` partial) made to work across the two streams.

    Raises:
        ValueError: the reentrant variant was asked for; it cannot pass the recorded keys to the second stream's backward.
    """
    if getattr(checkpoint, "keywords", {}).get("use_reentrant"):
        raise ValueError(
            "gradient_checkpointing_kwargs has use_reentrant=True, but the candidate stream differentiates through the keys that "
            "the true stream recorded, which needs the non-reentrant form; pass {'use_reentrant': False}."
        )
    return functools.partial(
        checkpoint, use_reentrant=False, context_fn=functools.partial(checkpoint_contexts, config)
    )


# ------------------------------------------------------------------------------------------------ candidate attention


class MergedPrefixSelfAttention(torch.autograd.Function):
    """Flash attention over the prefix with the self term merged through the log-sum-exp.

    With o, l the flash output and log-sum-exp over the prefix and s = scale * <q, k_self>:

        L = logaddexp(l, s);   out = o exp(l - L) + v_self exp(s - L)

    Backward: the flash backward recomputes its probabilities as exp(score - lse). Given the *merged* out and L it therefore
    yields the exact gradients of the prefix part, and the self term's are written out: with p = exp(s - L),

        ds = p (<dout, v_self> - <dout, out>) scale;   dq += ds k_self;   dk_self = ds q;   dv_self = p dout

    Shapes: q, k_self, v_self ``(rows, heads, queries, head_dim)``; keys, values ``(rows, heads, seq, head_dim)``;
    ``bias`` additive, ``(rows, 1, queries, seq)``, or None: query t then sees keys < t, which is a causal kernel over keys
    shifted by one.
    """

    @staticmethod
    def forward(ctx, q, keys, values, k_self, v_self, bias, scale):
        # the log-sum-exps stay in float32 (float64), as the flash kernel's do, whatever the dtype of q: (rows, heads, queries)
        score = (q * k_self).sum(-1, dtype=torch.promote_types(q.dtype, torch.float32)) * scale
        first = 1 if bias is None else 0  # query 0 has no prefix, and the shifted kernel has no row for it
        out, lse = torch.empty_like(q), score.clone()
        out[:, :, :first] = v_self[:, :, :first]
        if q.shape[2] > first:
            prefix_out, prefix_lse = _flash_forward(*_prefix(q, keys, values, first), bias, scale)
            torch.logaddexp(prefix_lse, score[:, :, first:], out=lse[:, :, first:])
            torch.mul(prefix_out, (prefix_lse - lse[:, :, first:]).exp_().unsqueeze(-1), out=out[:, :, first:])
            out[:, :, first:].addcmul_(v_self[:, :, first:], (score - lse)[:, :, first:].exp_().unsqueeze(-1))
        ctx.save_for_backward(q, keys, values, k_self, v_self, bias, out, lse, score)
        ctx.scale, ctx.first = scale, first
        return out

    @staticmethod
    def backward(ctx, grad_out):
        q, keys, values, k_self, v_self, bias, out, lse, score = ctx.saved_tensors
        p = torch.exp(score - lse)
        grad_score = ((grad_out * v_self).sum(-1) - (grad_out * out).sum(-1)).mul_(p).mul_(ctx.scale).unsqueeze(-1)
        grad_q, grad_k_self, grad_v_self = grad_score * k_self, grad_score * q, p.unsqueeze(-1) * grad_out
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        first = ctx.first
        if q.shape[2] > first:
            seen = keys.shape[2] - first
            query, key, value = _prefix(q, keys, values, first)
            dq, dk, dv = _flash_backward(
                grad_out[:, :, first:], query, key, value, out[:, :, first:], lse[:, :, first:], bias, ctx.scale
            )
            grad_q[:, :, first:] += dq
            grad_keys[:, :, :seen], grad_values[:, :, :seen] = dk, dv
        return grad_q, grad_keys, grad_values, grad_k_self, grad_v_self, None, None


def _masked_score(dtype):
    return max(MASKED_SCORE, torch.finfo(dtype).min)  # float16 ends at -65504


def _prefix(q, keys, values, first):
    seen = keys.shape[2] - first
    return q[:, :, first:], keys[:, :, :seen], values[:, :, :seen]


def _flash_forward(q, keys, values, bias, scale):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, keys, values, 0.0, bias is None, attn_mask=bias, scale=scale
    )


def _flash_backward(grad_out, q, keys, values, out, lse, bias, scale):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, q, keys, values, out, lse, 0.0, bias is None, attn_mask=bias, scale=scale
    )


def merged_attention(q, keys, values, k_self, v_self, mask, scale):
    """`MergedPrefixSelfAttention` with a boolean mask. Raises NotImplementedError off the CPU: no kernel is wired there."""
    if q.device.type != "cpu":
        raise NotImplementedError(
            f'two_stream_backend="merged" runs on the CPU flash kernel only, got tensors on "{q.device.type}"; use "sdpa" or "auto".'
        )
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, _masked_score(q.dtype))
        bias = bias.expand(q.shape[0], 1, -1, -1)
    return MergedPrefixSelfAttention.apply(q, keys, values, k_self, v_self, bias, scale)


def sdpa_attention(q, keys, values, k_self, v_self, mask, scale, dropout=0.0):
    """The same attention as one masked SDPA over [prefix ; self]; the mask is ``(rows or 1, 1, queries, seq + queries)``."""
    queries, seq = q.shape[2], keys.shape[2]
    if mask is None:
        mask = torch.ones(queries, seq, dtype=torch.bool, device=q.device).tril(-1)[None, None]
    own = torch.eye(queries, dtype=torch.bool, device=q.device).expand(mask.shape[0], 1, -1, -1)
    return F.scaled_dot_product_attention(
        q,
        torch.cat([keys, k_self], 2),
        torch.cat([values, v_self], 2),
        attn_mask=torch.cat([mask, own], -1),
        scale=scale,
        dropout_p=dropout,
    )


def eager_attention(q, keys, values, k_self, v_self, mask, scale):
    """The same attention, written out: the oracle of the other two."""
    if mask is None:
        mask = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool, device=q.device).tril(-1)
    prefix = (q @ keys.transpose(-1, -2) * scale).masked_fill(~mask, _masked_score(q.dtype))
    own = (q * k_self).sum(-1, keepdim=True) * scale
    weights = torch.softmax(torch.cat([prefix, own], -1), -1)
    return weights[..., :-1] @ values + weights[..., -1:] * v_self


def candidate_attention(q, keys, values, k_self, v_self, mask, scale, backend="auto", dropout=0.0):
    """Attention of candidate rows over the true prefix and themselves, ``(rows, heads, queries, head_dim)``.

    Args:
        q: ``(rows, heads, queries, head_dim)``; rows = batch * candidates, the candidates of one batch row adjacent.
        keys, values: of the true stream, ``(batch, kv_heads, seq, head_dim)``.
        k_self, v_self: the candidates' own, ``(rows, kv_heads, queries, head_dim)``.
        mask: visible true keys, boolean ``(batch, 1, queries, seq)``; None = strictly earlier positions (queries = seq).
        backend: ``"auto"`` takes ``merged`` on the CPU without dropout, ``sdpa`` elsewhere.

    Raises:
        ValueError: dropout with a backend that has none.
        NotImplementedError: ``merged`` off the CPU.
    """
    if backend == "auto":
        backend = "merged" if q.device.type == "cpu" and dropout == 0.0 else "sdpa"
    if dropout and backend != "sdpa":
        raise ValueError(
            f'two_stream_backend="{backend}" has no attention dropout, got {dropout}; use "sdpa" or set attention_dropout=0.'
        )
    if torch.is_autocast_enabled(
        q.device.type
    ):  # rotary embedding leaves q and k in float32; SDPA would cast by itself
        dtype = torch.get_autocast_dtype(q.device.type)
        q, keys, values, k_self, v_self = (x.to(dtype) for x in (q, keys, values, k_self, v_self))
    copies, groups = q.shape[0] // keys.shape[0], q.shape[1] // keys.shape[1]
    keys, values = _expand(keys, copies, groups), _expand(values, copies, groups)
    k_self, v_self = _expand(k_self, 1, groups), _expand(v_self, 1, groups)
    if mask is not None and mask.shape[0] > 1:
        mask = mask.repeat_interleave(copies, 0)
    if backend == "sdpa":
        return sdpa_attention(q, keys, values, k_self, v_self, mask, scale, dropout)
    return (merged_attention if backend == "merged" else eager_attention)(q, keys, values, k_self, v_self, mask, scale)


def _expand(x, copies, groups):
    """``(batch, kv_heads, seq, dim)`` -> ``(batch * copies, kv_heads * groups, seq, dim)``; a view when nothing repeats."""
    if copies == groups == 1:
        return x
    batch, heads, seq, dim = x.shape
    return x[:, None, :, None].expand(-1, copies, -1, groups, -1, -1).reshape(batch * copies, heads * groups, seq, dim)


# ------------------------------------------------------------------------------------------- transformers' registries

UNSUPPORTED = {
    "sliding_window": "a sliding window",
    "softcap": "logit soft-capping",
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
}


@torch.compiler.disable  # it reads the stream of the call, which no graph may bake in
def two_stream_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attention function of `TWO_STREAM` (transformers' `AttentionInterface`): records or reads the true keys by layer.

    Raises NotImplementedError naming the layer when it asks for a feature that the candidate stream does not have.
    """
    for name, feature in UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise NotImplementedError(
                f"attention layer {module.layer_idx} uses {feature} ({name}={kwargs[name]!r}); MonArc needs full causal attention."
            )
    stream = _STREAM.get()
    if stream.kind == "true":
        if stream.recording:
            stream.store.keys[module.layer_idx], stream.store.values[module.layer_idx] = key, value
        if stream.backend == "eager":
            return _eager_true_attention(query, key, value, stream.mask, scaling), None
        return ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, stream.mask, scaling=scaling, dropout=dropout
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = candidate_attention(
        query,
        stream.store.keys[module.layer_idx],
        stream.store.values[module.layer_idx],
        key,
        value,
        stream.mask,
        scaling,
        backend=stream.backend,
        dropout=dropout,
    )
    return out.transpose(1, 2).contiguous(), None


def _eager_true_attention(query, key, value, mask, scaling):
    groups = query.shape[1] // key.shape[1]
    key, value = _expand(key, 1, groups), _expand(value, 1, groups)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~mask, _masked_score(query.dtype))
    return (torch.softmax(scores, -1) @ value).transpose(1, 2).contiguous()


# Without a mask function of that name decoders build no mask: every stream has its own, and to build one transformers would look
# for packed documents in the positions, for which the host waits in every pass.
AttentionInterface.register(TWO_STREAM, two_stream_attention)
