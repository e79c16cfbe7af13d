"""Names and shapes of the original Monarch Mixer BERT checkpoints, and what can be read from them."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .implicit_filter import decay_rates, lag_times


RENAMED = (  # (pattern of the original, ours), first match wins; the filters' stacked weights are in FILTER
    (r"^bert\.embeddings\.LayerNorm\.", "m2_bert.embeddings.norm."),
    (r"^bert\.encoder\.layer\.(\d+)\.attention\.layernorm\.", r"m2_bert.encoder.layers.\1.mixer.norm."),
    (r"^bert\.encoder\.layer\.(\d+)\.attention\.in_linear\.", r"m2_bert.encoder.layers.\1.mixer.in_proj."),
    (r"^bert\.encoder\.layer\.(\d+)\.attention\.out_linear\.", r"m2_bert.encoder.layers.\1.mixer.out_proj."),
    (r"^bert\.encoder\.layer\.(\d+)\.attention\.short_filter\.", r"m2_bert.encoder.layers.\1.mixer.short_conv."),
    (r"^bert\.encoder\.layer\.(\d+)\.attention\.filter_fn\.", r"m2_bert.encoder.layers.\1.mixer.gated_filter."),
    (r"^bert\.encoder\.layer\.(\d+)\.attention\.filter_fn2\.", r"m2_bert.encoder.layers.\1.mixer.residual_filter."),
    (r"^bert\.encoder\.layer\.(\d+)\.mlp\.gated_layers\.", r"m2_bert.encoder.layers.\1.mlp.up."),
    (r"^bert\.encoder\.layer\.(\d+)\.mlp\.wo\.", r"m2_bert.encoder.layers.\1.mlp.down."),
    (r"^bert\.encoder\.layer\.(\d+)\.mlp\.layernorm\.", r"m2_bert.encoder.layers.\1.mlp.norm."),
    (r"^bert\.", "m2_bert."),
    (r"^cls\.predictions\.transform\.dense\.", "lm_head.dense."),
    (r"^cls\.predictions\.transform\.LayerNorm\.", "lm_head.norm."),
    (r"^cls\.predictions\.bias$", "lm_head.decoder.bias"),
    (r"^cls\.predictions\.decoder\.", "lm_head.decoder."),
)
KNOWN = r"m2_bert\.(embeddings|encoder|pooler\.dense)\.|lm_head\.|classifier\."
IGNORED_BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}  # of stored buffers against the rule; else 1e-2
WRONG_OPTIONS = {  # fields of the original's config.json that select another computation
    "sequence_token_planting": "[CLS] tokens planted inside the row",
    "use_normalized_embeddings": "its own normalisation; set normalize_embeddings of M2BertForSentenceEmbedding instead",
}
_LAYER = "bert.encoder.layer.{}."
_FILTER = re.compile(r"^(bert\.encoder\.layer\.\d+\.attention\.filter_fn2?)\.(.+)$")


def plain_names(state: Mapping) -> dict[str, Tensor]:
    """The state without the prefixes of wrappers and trainers, and with ``bert.`` before a bare encoder.

    Raises:
        ValueError: not a flat dict of tensors, or no M2-BERT encoder in it.
    """
    names = {}
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f'the weights must be tensors, got {type(tensor).__name__} at "{key}".')
        name = key.replace("_orig_mod.", "")
        while name.startswith(("module.", "model.")):
            name = name.split(".", 1)[1]
        if name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        names[name] = tensor
    if "bert.encoder.layer.0.attention.filter_fn.pos_emb.z" not in names:
        found = ", ".join(sorted(state)[:6])
        raise ValueError(
            "these are not the weights of a Monarch Mixer BERT (bert.encoder.layer.0.attention.filter_fn.pos_emb.z is missing); "
            f"the first of {len(state)} keys are {found}."
        )
    return names


def infer_fields(state: dict[str, Tensor], config: Mapping) -> dict:
    """Fields of `M2BertConfig` from the shapes and names of the weights, and from ``config`` (the original's, may be empty).

    Shapes win. Of the config are taken what shapes cannot tell: w, w_mod, norm epsilon, dropout, pooling, labels.

    Raises:
        ValueError: an option of the original that this package does not have, or shapes that contradict each other.
    """
    for option, reason in WRONG_OPTIONS.items():
        if config.get(option):
            raise ValueError(f"config.json has {option}=true, which is not supported: {reason}.")
    layer = _LAYER.format(0)
    filter_prefix = f"{layer}attention.filter_fn."
    vocab, hidden = state["bert.embeddings.word_embeddings.weight"].shape
    length, emb_dim = state[f"{filter_prefix}pos_emb.z"].shape[1:]
    numbers = {int(match[1]) for key in state if (match := re.match(r"bert\.encoder\.layer\.(\d+)\.", key))}
    if numbers != set(range(len(numbers))):
        raise ValueError(f"the layers of the checkpoint are {sorted(numbers)}; some are missing.")
    positions = state.get("bert.embeddings.position_embeddings.weight")
    if positions is not None and len(positions) != length:
        raise ValueError(
            f"position_embeddings has {len(positions)} rows and the filters {length}; they must be equal for a conversion."
        )
    fields = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": len(numbers),
        "max_position_embeddings": length,
        "use_position_embeddings": positions is not None,
        "type_vocab_size": len(state["bert.embeddings.token_type_embeddings.weight"]),
        "bidirectional": f"{filter_prefix}implicit_filter_rev.0.weight" in state,
        "residual_long_conv": f"{layer}attention.filter_fn2.bias" in state,
        "mixer_pre_norm": f"{layer}attention.layernorm.weight" in state,
        "filter_order": len(state[f"{filter_prefix}implicit_filter.0.weight"]),
        "filter_emb_dim": emb_dim,
        "filter_freq": float(config.get("hyena_w", 10)),
        "filter_freq_scale": float(config.get("hyena_w_mod", 1)),
        "padding_mode": "reference",
        "pooling": "mean" if config.get("pool_all") else "cls",
        "pool_with_dense": not config.get("use_cls_token", False),
        "normalize_embeddings": False,
        "pad_token_id": config.get("pad_token_id", 0),
        **mlp_fields(state[f"{layer}mlp.gated_layers.weight"], state[f"{layer}mlp.wo.weight"], hidden, config),
    }
    fields |= {name: config[name] for name in ("layer_norm_eps", "hidden_dropout_prob") if name in config}
    fields |= {name: config[name] for name in ("initializer_range", "id2label", "label2id") if name in config}
    if "classifier.weight" in state and "id2label" not in fields:
        fields["num_labels"] = len(state["classifier.weight"])
    return fields


def mlp_fields(up: Tensor, down: Tensor, hidden: int, config: Mapping) -> dict:
    """Block count, gating and inner size of the MLP from its two weights.

    The inner size is ambiguous where blocks are padded; then the config's is taken if it fits, else the largest that does.
    """
    up, down = (weight if weight.ndim == 3 else weight[None] for weight in (up, down))
    blocks = len(up)
    sizes = range(1, blocks * down.shape[2] + 1)
    for gated in (True, False):
        fits = [
            inner
            for inner in sizes
            if math.ceil((1 + gated) * inner / blocks) == up.shape[1] and math.ceil(inner / blocks) == down.shape[2]
        ]
        if fits:
            given = config.get("intermediate_size")
            inner = given if given in fits else fits[-1]
            return {"mlp_num_blocks": blocks, "mlp_gated": gated, "intermediate_size": inner}
    raise ValueError(
        f"mlp.gated_layers.weight {tuple(up.shape)} and mlp.wo.weight {tuple(down.shape)} belong to no MLP of width {hidden}."
    )


def follows_decay_rule(state: dict[str, Tensor]) -> bool:
    """Whether the stored times and decay rates of every filter are those that this package computes."""
    for key, tensor in state.items():
        if key.endswith("pos_emb.t"):
            expected, found = lag_times(tensor.numel(), tensor.numel()), tensor.flatten()
        elif key.endswith("modulation.deltas"):
            expected, found = decay_rates(tensor.numel()), tensor.flatten().abs()
        else:
            continue
        limit = TOLERANCE.get(tensor.dtype, 1e-2) * max(1.0, float(expected.max()))
        if not (found.double() - expected.double()).abs().max() <= limit:
            return False
    return True


def convert_state(state: dict[str, Tensor], fields: dict, stored_decay: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under our names, and the keys that have no place.

    Raises:
        ValueError: the copies of a filter's frequencies, or of the tied word embeddings, differ.
    """
    weights, left, filters = {}, [], {}
    for key, tensor in state.items():
        if key in IGNORED_BUFFERS:
            continue
        if match := _FILTER.match(key):
            filters.setdefault(match[1], {})[match[2]] = tensor
            continue
        name = rename_key(key)
        if not re.match(KNOWN, name):
            left.append(key)
            continue
        if ".mlp." in name and name.endswith(("up.weight", "down.weight")) and tensor.ndim == 2:
            tensor = tensor[None]
        weights[name] = tensor.squeeze(1) if name.endswith("short_conv.weight") else tensor
    for prefix, parts in filters.items():
        name = rename_key(f"{prefix}.")
        converted, unknown = _convert_filter(prefix, parts, fields["bidirectional"], stored_decay)
        weights |= {f"{name}{leaf}": tensor for leaf, tensor in converted.items()}
        left += [f"{prefix}.{leaf}" for leaf in unknown]
    decoder, words = weights.get("lm_head.decoder.weight"), weights["m2_bert.embeddings.word_embeddings.weight"]
    if decoder is not None and not torch.equal(decoder, words):
        raise ValueError(
            "cls.predictions.decoder.weight differs from the word embeddings, to which it should be tied; the file is damaged or "
            "of another model."
        )
    return weights, sorted(left)


def rename_key(key: str) -> str:
    """Our name of one of the original's parameters outside the filters."""
    for pattern, ours in RENAMED:
        if re.match(pattern, key):
            return re.sub(pattern, ours, key)
    return key


def _convert_filter(prefix, parts, bidirectional, stored_decay):
    """One filter's parameters under our names, directions stacked, and the names that it does not know."""
    branches = ["implicit_filter", "implicit_filter_rev"][: 1 + bidirectional]
    copies = [f"{branch}.{i}.freq" for branch in branches for i in (1, 3, 5) if f"{branch}.{i}.freq" in parts]
    if not copies:
        raise ValueError(f"{prefix}.implicit_filter.1.freq is missing.")
    for name in copies[1:]:
        if not torch.equal(parts[name], parts[copies[0]]):
            raise ValueError(
                f"{prefix}.{name} differs from {copies[0]}; the original ties all frequencies of a filter, so these weights come "
                "from other code and would give other filters."
            )
    try:
        stack = lambda leaf: torch.stack([parts[f"{branch}.{leaf}"] for branch in branches])  # noqa: E731
        converted = {
            "positions": parts["pos_emb.z"][0],
            "frequency": parts[copies[0]][0],
            "skip": parts["bias"],
            "weight_in": stack("0.weight"),
            "bias_in": stack("0.bias"),
            "weight_mid": torch.stack([stack("2.weight"), stack("4.weight")]),
            "bias_mid": torch.stack([stack("2.bias"), stack("4.bias")]),
            "weight_out": stack("6.weight"),
        }
        if stored_decay:
            converted |= {"time": parts["pos_emb.t"].flatten(), "rates": parts["modulation.deltas"].flatten()}
    except KeyError as error:
        raise ValueError(f"{prefix}.{error.args[0]} is missing.") from None
    used = {"pos_emb.z", "pos_emb.t", "modulation.deltas", "bias", *copies}
    used |= {f"{branch}.{leaf}" for branch in branches for leaf in _LEAVES}
    return converted, sorted(parts.keys() - used)


_LEAVES = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias", "6.weight")
