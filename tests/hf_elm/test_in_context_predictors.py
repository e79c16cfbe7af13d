"""What models predict after each prefix, against one forward pass per prefix and token."""

import itertools

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_elm.in_context_languages import LanguageSettings, languages
from hf_elm.in_context_predictors import RowTokens, model_distributions
from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM
from hf_elm.modeling.nano_ebm import NanoEBMConfig
from hf_elm.modeling.nano_ebm.modeling_nano_ebm import NanoEBMForRefinement
from hf_elm.trainers.tokenization import build_tokenizer


SETTINGS = LanguageSettings(length=13)
ROWS = [row for _, row in itertools.islice(languages(SETTINGS, "test"), 3)]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("char", [SETTINGS.characters])


def special(tokenizer):
    return {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 32}  # fmt: skip


def random_weights(model, std=0.3):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return model.double()


def test_elm_probabilities_equal_one_pass_per_prefix_and_token(tokenizer):
    text_config = {"model_type": "llama", "num_key_value_heads": 2, **SIZES, **special(tokenizer)}
    model = random_weights(MonArcForCausalLM(MonArcConfig(text_config=text_config, energy_adapter_rank=2))).train()
    tokens = RowTokens(tokenizer, ROWS, SETTINGS)
    found = model_distributions(model, tokens, batch_size=2)
    assert model.training  # put back
    model.eval()
    assert list(found) == ["LM", "ELM"]
    assert found["ELM"].shape == (3, 13, 7)
    for row, place in ((0, 0), (1, 5), (2, 12)):  # the last one is after the whole row
        prefix = tokens.ids[row, : place + 1]
        rows = torch.stack([torch.cat([prefix, torch.tensor([token])]) for token in range(len(tokenizer))])
        with torch.no_grad():
            out = model(rows)
        exact = (out.log_probs[:, -1] - out.energies[:, -1]).softmax(0)[tokens.columns]
        # RMSNorm computes in float32
        np.testing.assert_allclose(found["ELM"][row, place], exact.numpy(), atol=1e-6)
        np.testing.assert_allclose(found["LM"][row, place], out.log_probs[:, -1].exp()[tokens.columns], atol=1e-6)
    assert np.abs(found["ELM"] - found["LM"]).max() > 0.01
    assert (found["ELM"].sum(-1) <= 1).all()


def test_thinking_is_scored_before_and_after_each_number_of_steps(tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = random_weights(NanoEBMForRefinement(NanoEBMConfig(**sizes, **special(tokenizer)))).eval()
    tokens = RowTokens(tokenizer, ROWS, SETTINGS)
    found = model_distributions(model, tokens, think_steps=(1, 3), batch_size=3)
    assert list(found) == ["system 1", "system 2, 1 step", "system 2, 3 steps"]
    with torch.no_grad():
        for steps, name in ((1, "system 2, 1 step"), (3, "system 2, 3 steps")):
            out = model(input_ids=tokens.ids, think_steps=steps)
            np.testing.assert_allclose(found[name], out.logits.softmax(-1)[..., tokens.columns], atol=1e-10)
            np.testing.assert_allclose(found["system 1"], out.s1_logits.softmax(-1)[..., tokens.columns], atol=1e-10)
    assert np.abs(found["system 2, 1 step"] - found["system 1"]).max() > 0.01


def test_plain_models_and_misfits(tokenizer):
    config = LlamaConfig(num_key_value_heads=2, **SIZES, **special(tokenizer))
    model = LlamaForCausalLM(config).eval()
    tokens = RowTokens(tokenizer, ROWS, SETTINGS)
    found = model_distributions(model, tokens)
    assert list(found) == ["LM"]
    with torch.no_grad():
        expected = model(input_ids=tokens.ids).logits.double().softmax(-1)[..., tokens.columns]
    np.testing.assert_allclose(found["LM"], expected, atol=1e-6)
    long = [row for _, row in itertools.islice(languages(LanguageSettings(length=33), "test"), 1)]
    with pytest.raises(ValueError, match="rows have 33 characters, but the model has 32 positions"):
        model_distributions(model, RowTokens(tokenizer, long, SETTINGS))
    full = [row for _, row in itertools.islice(languages(LanguageSettings(length=32), "test"), 1)]
    learned = GPT2Config(n_positions=32, n_embd=16, n_layer=1, n_head=2, **special(tokenizer))
    elm = MonArcForCausalLM.from_causal_lm(GPT2LMHeadModel(learned))
    with pytest.raises(ValueError, match="32 characters and one more is scored, but the model has 32 positions"):
        model_distributions(elm, RowTokens(tokenizer, full, SETTINGS))
    bytes_ = build_tokenizer("byte")
    with pytest.raises(ValueError, match="both must belong together"):
        model_distributions(model, RowTokens(bytes_, ROWS, SETTINGS))
    assert RowTokens(bytes_, ROWS, SETTINGS).columns.tolist() == [ord(c) for c in " abcdef"]
    pairs = build_tokenizer("bpe", ["ab " * 50], 260)
    with pytest.raises(ValueError, match="does not read the characters"):
        RowTokens(pairs, ROWS, SETTINGS)
    few = build_tokenizer("char", ["ab "])  # c to f are unknown
    with pytest.raises(ValueError, match="does not read the characters"):
        RowTokens(few, ROWS, SETTINGS)
