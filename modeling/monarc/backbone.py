"""The language model inside: its two passes, the state before its final norm, and the check that it qualifies."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .token_layout import TokenLayout, token_layout
from .two_stream_attention import Stream, StreamStore, current_stream, stream_pass


FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm")


@dataclass
class TruePass:
    """What the true stream leaves behind.

    Attributes:
        state: input of the decoder's final norm, ``(batch, seq, hidden)``: what energies read.
        normed: the decoder's output, ``(batch, seq, hidden)``: what the LM head reads.
        store: keys and values per layer.
        layout: masks and positions.
        hidden_states: of every layer, when asked for.
    """

    state: Tensor
    normed: Tensor
    store: StreamStore
    layout: TokenLayout
    hidden_states: tuple | None = None


class BackbonePlans:
    """How transformers shards the model: by the plans of the LM inside, but for its output embedding.

    Losses and samples read that weight outside its own forward pass, so it stays whole: replicated under tensor parallelism, in
    the outermost group under FSDP. Energy head and adapter stay whole likewise. There is no pipeline plan.
    """

    def init_parallel_plans(self) -> None:
        """Called by transformers when the model is built."""
        super().init_parallel_plans()
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = [name for name in type(self)._no_split_modules if name in present]
        whole = [self.get_output_embeddings()]
        if self.lm.config.get_text_config().tie_word_embeddings:
            whole.append(self.get_input_embeddings())
        names = {name for name, module in self.named_modules() if any(module is each for each in whole)}
        self._tp_plan = {name: style for name, style in self._tp_plan.items() if name not in names}
        self._fsdp_plan = {name: style for name, style in self._fsdp_plan.items() if name not in names}
        self._pp_plan = {}


def watch_final_norm(decoder: nn.Module) -> None:
    """Hooks the decoder's final norm, so that every `stream_pass` learns the state before it."""
    for name in FINAL_NORMS:
        if isinstance(norm := getattr(decoder, name, None), nn.Module):
            norm.register_forward_pre_hook(_record_final_state)
            return


def _record_final_state(module, args):
    if (stream := current_stream()) is not None:
        stream.final_state = args[0]


def run_decoder(lm: nn.Module, stream: Stream, **inputs):
    """Calls the decoder of ``lm`` as ``stream`` and returns (its output, the state before its final norm).

    A decoder whose final norm is not known by name (`FINAL_NORMS`) gives its output for both.
    """
    decoder = lm.get_decoder()
    with stream_pass(stream, decoder.config):
        out = decoder(**inputs)
    return out, out.last_hidden_state if stream.final_state is None else stream.final_state


def true_pass(
    lm: nn.Module,
    input_ids: Tensor,
    layout: TokenLayout,
    backend: str = "auto",
    store: StreamStore | None = None,
    **options,
) -> TruePass:
    """The plain causal pass, which records its keys and values. No graph is built when the whole LM is frozen."""
    stream = Stream("true", StreamStore() if store is None else store, backend, layout.mask)
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in lm.parameters())
    with torch.set_grad_enabled(trained):
        out, state = run_decoder(
            lm, stream, input_ids=input_ids, position_ids=layout.position_ids, use_cache=False, **options
        )
    return TruePass(state, out.last_hidden_state, stream.store, layout, getattr(out, "hidden_states", None))


def candidate_pass(
    lm: nn.Module, true: TruePass, candidates: Tensor, positions: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """States of candidate tokens, each given the true tokens before its position, ``(batch, K, queries, hidden)``.

    Args:
        candidates: ``(batch, K, queries)``.
        positions: the place in the row of each query, ascending, ``(queries,)``; None = every place.
    """
    batch, copies, queries = candidates.shape
    mask, position_ids = true.layout.prefix_mask, true.layout.position_ids
    if positions is not None:
        position_ids = position_ids[:, positions]
        if mask is None:
            seq = true.state.shape[1]
            mask = (torch.arange(seq, device=positions.device) < positions.unsqueeze(1))[None, None]
        else:
            mask = mask[:, :, positions]
    if position_ids.shape[0] > 1:
        position_ids = position_ids.repeat_interleave(copies, 0)
    stream = Stream("candidate", true.store, backend, mask, adapter_rows=slice(None))
    inputs = {
        "input_ids": candidates.reshape(batch * copies, queries),
        "position_ids": position_ids,
        "use_cache": False,
    }
    _, state = run_decoder(lm, stream, **inputs)
    return state.view(batch, copies, queries, -1)


# ----------------------------------------------------------------------------------------------- does the LM qualify?


def check_backbone(lm: nn.Module) -> None:
    """Checks that two streams through ``lm`` are exact; does so by a tiny run unless the weights are not materialised.

    The run feeds five tokens as their own candidates: in a decoder with full causal softmax attention and no other way from
    token to token, both streams then hold the same states, and its logits are its head applied to its output.

    Raises:
        ValueError: the architecture does not qualify; the message names the layer or the step that differs.
    """
    name, config = type(lm).__name__, lm.get_decoder().config
    _check_layers(name, config)
    _check_attention_modules(name, lm.get_decoder(), config.num_hidden_layers)
    parameters = list(lm.parameters())
    if any(p.is_meta or hasattr(p, "ds_id") or type(p.data) is not Tensor for p in parameters):
        return
    training = lm.training
    lm.eval()
    try:
        _check_streams(name, lm, parameters[0].device)
    finally:
        lm.train(training)


def _refuse(name, reason, cause=None):
    raise ValueError(
        f"{name} cannot carry a MonArc energy: {reason}. It needs a decoder with full causal softmax attention in every layer, "
        "for example of type stablelm, llama, qwen2 or gpt2."
    ) from cause


def _check_layers(name, config):
    if getattr(config, "is_encoder_decoder", False):
        _refuse(name, "it is an encoder-decoder model")
    for index, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind != "full_attention":
            _refuse(name, f'layer {index} is of type "{kind}"')
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and not getattr(config, "layer_types", None):
        _refuse(name, f"its layers attend within a sliding window of {window} tokens")


def _check_attention_modules(name, decoder, num_layers):
    attention = {m.layer_idx for m in decoder.modules() if "Attention" in type(m).__name__ and hasattr(m, "layer_idx")}
    missing = sorted(set(range(num_layers)) - attention)
    if missing:
        _refuse(name, f"layer {missing[0]} has no attention module with a layer_idx")


@torch.no_grad()
def _check_streams(name, lm, device):
    length = 5
    ids = (
        (torch.arange(length, device=device) * 7 + 1).remainder(lm.get_input_embeddings().weight.shape[0]).unsqueeze(0)
    )
    store = StreamStore()
    try:
        true = true_pass(lm, ids, token_layout(ids), "sdpa", store)
    except Exception as error:
        _refuse(
            name,
            f"layer {len(store.keys)} fails in a plain pass without a cache ({type(error).__name__}: {error})",
            error,
        )
    missing = sorted(set(range(lm.get_decoder().config.num_hidden_layers)) - set(store.keys))
    if missing:
        _refuse(name, f"the attention of layer {missing[0]} does not go through transformers' attention interface")
    candidates = candidate_pass(lm, true, ids.unsqueeze(1), backend="sdpa")[:, 0]
    if not _close(candidates, true.state):
        _refuse(name, "a token scored as candidate differs from the same token in the plain pass")
    plain = lm(input_ids=ids, use_cache=False)
    if not _close(lm.get_output_embeddings()(true.normed), plain.logits):
        _refuse(
            name, "its logits are not its output embedding applied to the decoder's output (scaling or soft-capping)"
        )


def _close(a, b):
    tolerance = 1e-3 if a.dtype in (torch.float32, torch.float64) else 0.1
    return bool((a - b).float().norm() <= tolerance * b.float().norm().clamp(min=1e-6))
