"""Tiny MonArc models of four architectures, batches, and the from-scratch oracle of the candidate streams."""

import types

import torch

from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM


VOCAB = 64
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT_CONFIGS = {
    "stablelm": {"use_qkv_bias": True, "num_key_value_heads": 4, "partial_rotary_factor": 0.25, **SIZES},
    "llama": {"num_key_value_heads": 2, **SIZES},
    "qwen2": {"num_key_value_heads": 1, "tie_word_embeddings": True, **SIZES},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
ARCHITECTURES = tuple(TEXT_CONFIGS)
SPECIAL = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}


def text_config(kind="stablelm", **overrides):
    length = {"n_positions" if kind == "gpt2" else "max_position_embeddings": 64}
    return {"model_type": kind, "vocab_size": VOCAB, **length, **SPECIAL, **TEXT_CONFIGS[kind], **overrides}


def tiny_monarc(kind="stablelm", seed=0, dtype=torch.float64, spread=0.3, text=None, **fields):
    """A model in eval mode with every parameter random, the zero-initialised ones of the energy included (std ``spread``)."""
    torch.manual_seed(seed)
    model = MonArcForCausalLM(MonArcConfig(text_config=text_config(kind, **(text or {})), **fields))
    scatter(model, spread)
    return double_precision_norms(model.to(dtype)).eval()


@torch.no_grad()
def scatter(model, spread=0.3):
    """Random energies: a zero-initialised head hides errors."""
    for parameter in model.energy_parameters():
        parameter.add_(torch.randn_like(parameter) * spread)
    for parameter in model.lm.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def double_precision_norms(model):
    """RMSNorm casts to float32, so equal models differ by float32 rounding; here it keeps the input's precision."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_rms_norm, module)
    return model


def _rms_norm(self, x):
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def tokens(*shape, seed=0, low=2):
    return torch.randint(low, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def layout_inputs(layout, seq):
    """Two rows: ``plain``, ``left`` or ``right`` padded, or ``packed`` (documents and, in row 1, padding at the end)."""
    if layout == "plain":
        return {}
    padding = min(3, seq - 1)
    mask = torch.ones(2, seq, dtype=torch.long)
    if layout in ("left", "right"):
        mask[1, slice(0, padding) if layout == "left" else slice(seq - padding, seq)] = 0
        return {"attention_mask": mask}
    segments = (torch.arange(seq) // 3).repeat(2, 1)
    segments[1] = torch.arange(seq) // 5
    segments[1, seq - padding :] = -1 if padding else segments[1, seq - padding :]
    return {"segment_ids": segments}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def scalar(out, seed=5):
    """A loss that weighs every energy differently."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(out.negative_energies.shape, generator=generator, dtype=torch.float64)
    return (out.negative_energies * weights).sum() + (out.energies * weights.flip(1)[:, 0]).sum() + out.lm_loss


def candidate_state_from_scratch(model, input_ids, token, row, place, visible, position_ids):
    """State before the final norm and LM log-probability of ``token`` at ``place``: the plain LM run on prefix + token.

    ``visible`` are the places of the prefix, ascending.
    """
    ids = torch.cat([input_ids[row, visible], token.view(1)]).unsqueeze(0)
    positions = torch.cat([position_ids[row, visible], position_ids[row, place].view(1)]).unsqueeze(0)
    states = []
    hook = final_norm(model).register_forward_pre_hook(lambda module, args: states.append(args[0]))
    out = model.lm(input_ids=ids, position_ids=positions, use_cache=False)
    hook.remove()
    return states[-1][0], out.logits[0].log_softmax(-1)


def final_norm(model):
    decoder = model.lm.get_decoder()
    return decoder.ln_f if hasattr(decoder, "ln_f") else decoder.norm


def energies_from_scratch(model, input_ids, candidates, layout):
    """Energy of every candidate, ``(batch, K, seq)``, from one plain LM call per candidate; 0 where nothing is scored."""
    batch, copies, seq = candidates.shape
    positions = layout.position_ids.expand(batch, -1)
    rows = torch.ones(seq, seq, dtype=torch.bool).tril(-1).expand(batch, seq, seq)
    prefix = rows if layout.prefix_mask is None else layout.prefix_mask[:, 0].expand(batch, seq, seq)
    energies = []
    for b, k, t in torch.cartesian_prod(torch.arange(batch), torch.arange(copies), torch.arange(seq)):
        visible = prefix[b, t].nonzero().flatten()
        if not layout.scored[b, t]:
            energies.append(torch.zeros((), dtype=torch.float64))
            continue
        token = candidates[b, k, t]
        states, log_probs = candidate_state_from_scratch(model, input_ids, token, b, t, visible, positions)
        energies.append(model.energy_head(states[-2], states[-1], log_probs[-2, token]))
    return torch.stack(energies).view(batch, copies, seq)
