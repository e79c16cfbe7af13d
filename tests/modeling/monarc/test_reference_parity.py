"""The same numbers as the original implementation, recorded in tests/fixtures/monarc (provenance: its README).

The original stores the energy of token n at index n - 1, scores padding (here: labels -100) and masks attention by segment
alone, padding included; the comparison does the same.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM, two_stream_attention
from hf_elm.modeling.monarc.convert_monarc import reference_config, rename_key
from hf_elm.modeling.monarc.residual_energy import energy_loss_terms
from hf_elm.modeling.monarc.two_stream_attention import BACKENDS


FIXTURE = Path(__file__).parents[2] / "fixtures" / "monarc"
PADDING = 96


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURE / "tensors.safetensors")


@pytest.fixture(scope="module")
def recorded_double():
    return load_file(FIXTURE / "tensors_f64.safetensors")


def reference_model(dtype=torch.float32, backend="auto"):
    fields = json.loads((FIXTURE / "config.json").read_text())
    model = MonArcForCausalLM(MonArcConfig(**reference_config(fields), mask_segment_starts=False))
    weights = load_file(FIXTURE / "model.safetensors")
    model.load_state_dict({rename_key(name): tensor for name, tensor in weights.items()}, strict=True)
    model.config.two_stream_backend = backend
    return model.to(dtype)


def run(model, recorded, **options):
    ids = recorded["input_ids"].long()
    labels = ids.masked_fill(ids == PADDING, -100)
    out = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        segment_ids=recorded["segment_ids"].long(),
        labels=labels,
        negatives=recorded["fake_ids"].long()[:, None],
        output_logits=True,
        **options,
    )
    return out, labels[:, 1:] != -100


def differences(out, counted, recorded):
    """Absolute differences at the counted targets: log-probabilities over the vocabulary, true energies, candidate energies."""
    yield (out.logits.log_softmax(-1) - recorded["lm_logits"])[:, :-1][counted].abs()
    yield (out.energies[:, 1:] - recorded["true_arc"][:, :-1])[counted].abs()
    yield (out.negative_energies[:, 0, 1:] - recorded["fake_arc"][:, :-1])[counted].abs()


def losses(out, counted):
    """The three losses and the metrics of the original, recomputed from our energies."""
    energies, candidates = out.energies[:, 1:][counted], out.negative_energies[:, 0, 1:][counted]
    nce = sum(energy_loss_terms(energies, candidates.unsqueeze(1), "nce"))
    # the original's direct loss is a surrogate: right gradient, but its value is not the bound
    surrogate = energies + torch.exp(-candidates) * -candidates
    return {
        "lm_loss": -out.log_probs[:, 1:][counted].mean(),
        "arc_loss": nce.mean(),
        "reaper_loss": surrogate.mean(),
        "reaper_z": torch.exp(-candidates).mean(),
        "arc_adj": -energies.mean(),
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_values_equal_the_recorded_ones(recorded, backend):
    out, counted = run(reference_model(backend=backend), recorded)
    for difference in differences(out, counted, recorded):
        assert difference.max() <= 1e-5
    expected = json.loads((FIXTURE / "expected.json").read_text())
    for name, value in losses(out, counted).items():
        assert abs(value.item() - expected[name]) <= 1e-5, name
    assert_close(out.lm_loss.item(), expected["lm_loss"], atol=1e-5, rtol=0)
    assert_close(out.z_hat.item(), expected["reaper_z"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("form", "weight", "prefix"), [("nce", 2.0, "grad_arc."), ("direct", 1.0, "grad_reaper.")])
def test_float32_gradients_of_every_parameter_equal_the_recorded_ones(recorded, backend, form, weight, prefix):
    model = reference_model(backend=backend)
    run(model, recorded, energy_loss=form, energy_loss_weight=weight)[0].loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = {
        rename_key(key.removeprefix(prefix)): value for key, value in recorded.items() if key.startswith(prefix)
    }
    assert expected.keys() == gradients.keys()
    for name, value in expected.items():  # relative to the largest entry: float32 sums of up to 1e2 terms
        assert (gradients[name] - value).abs().max() <= 1e-5 * value.abs().max().clamp(min=1.0), name


def test_float64_values_are_close_without_emulating_float32(recorded_double, recorded):
    """The original's float64 run still computes rotary tables and attention weights in float32: 1e-6 is what that leaves."""
    out, counted = run(reference_model(torch.float64), recorded)
    for difference in differences(out, counted, recorded_double):
        assert difference.max() <= 1e-6


def test_float64_values_are_equal_with_the_two_float32_steps_of_the_original(recorded, recorded_double, monkeypatch):
    """With the rotary tables and the attention softmax in float32, as in the original, everything agrees to 1e-9.

    Everything but one candidate energy out of 63: one of its attention weights lies on a float32 rounding boundary, so that a
    score that differs in the last float64 digit rounds the other way; one float32 ulp there moves that energy by 2.6e-8.
    """
    model = reference_model(torch.float64, "eager")
    monkeypatch.setattr(model.lm.get_decoder().rotary_emb, "forward", rotary_tables_in_float32)
    monkeypatch.setattr(two_stream_attention, "_eager_true_attention", true_attention_with_float32_softmax)
    monkeypatch.setattr(two_stream_attention, "eager_attention", candidate_attention_with_float32_softmax)
    out, counted = run(model, recorded)
    log_probs, energies, candidates = differences(out, counted, recorded_double)
    assert log_probs.max() <= 1e-9
    assert energies.max() <= 1e-9
    assert (candidates > 1e-9).sum() <= 1
    assert candidates.max() <= 5e-8
    for name, value in {
        **losses(out, counted),
        "arc_loss": run(model, recorded, energy_loss="nce")[0].energy_loss,
    }.items():
        assert abs(value - recorded_double[f"metric.{name}"].item()) <= 1e-9, name


def rotary_tables_in_float32(x, position_ids):
    frequencies = 10000 ** -(torch.arange(0, 4, 2, dtype=torch.float64) / 4)  # rotary width 4 of 16
    angles = position_ids[..., None].float() * frequencies.float()
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def float32_softmax(scores):
    return F.softmax(scores.float(), -1).to(scores.dtype)


def true_attention_with_float32_softmax(query, key, value, mask, scaling):
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~mask, -torch.inf)
    return (float32_softmax(scores) @ value).transpose(1, 2).contiguous()


def candidate_attention_with_float32_softmax(q, keys, values, k_self, v_self, mask, scale):
    """The self score stands after seq - 1 prefix columns: the order of the original's float32 sum."""
    prefix = (q @ keys.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    own = (q * k_self).sum(-1, keepdim=True) * scale
    weights = float32_softmax(torch.cat([prefix[..., :-1], own], -1))
    return weights[..., :-1] @ values[:, :, :-1] + weights[..., -1:] * v_self
