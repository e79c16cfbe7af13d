"""Which language models qualify, and why the others do not."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPTNeoXConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM
from tests.modeling.monarc.tiny_monarc import VOCAB, tiny_monarc, tokens


TINY = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 1}
LLAMA_LIKE = {**TINY, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 16}
FULL = {"layer_types": ["full_attention"] * 2}
QUALIFYING = {
    "gpt_neox": GPTNeoXConfig(**TINY, intermediate_size=48),
    "qwen3": Qwen3Config(**LLAMA_LIKE),
    "mistral": MistralConfig(**LLAMA_LIKE, sliding_window=None),
}
REFUSED = {
    "sliding": (
        MistralConfig(**LLAMA_LIKE, sliding_window=4),
        "(sliding window of 4 tokens|layer 0 is of type .sliding)",
    ),
    "partly sliding": (
        Qwen2Config(**LLAMA_LIKE, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        'layer 1 is of type "sliding_attention"',
    ),
    "soft-capping": (
        Gemma2Config(
            **LLAMA_LIKE, **FULL, sliding_window=4, attn_logit_softcapping=50.0, final_logit_softcapping=None
        ),
        "layer 0 fails .*layer 0 uses logit soft-capping",
    ),
    "capped logits": (
        Gemma2Config(
            **LLAMA_LIKE, **FULL, sliding_window=4, attn_logit_softcapping=None, final_logit_softcapping=0.01
        ),
        "its logits are not its output embedding",
    ),
    "scaled logits": (CohereConfig(**LLAMA_LIKE, logit_scale=0.1), "its logits are not its output embedding"),
    "recurrent": (
        MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=1),
        "layer 0 is of type .linear_attention",
    ),
    "alibi": (BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2), "layer 0"),
    "falcon alibi": (FalconConfig(**TINY, alibi=True, new_decoder_architecture=False), "layer 0"),
}


@pytest.mark.parametrize("name", QUALIFYING)
def test_other_architectures_with_standard_attention_qualify(name):
    torch.manual_seed(0)
    model = MonArcForCausalLM(MonArcConfig(text_config=QUALIFYING[name])).eval()
    ids = tokens(2, 7)
    with torch.no_grad():
        out = model(input_ids=ids, labels=ids)
        assert torch.equal(out.logits, model.lm(input_ids=ids).logits)
    assert torch.count_nonzero(out.energies) == 0


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_with_the_layer_or_step_that_differs(name):
    config, reason = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(
        ValueError, match=rf"(?s)cannot carry a MonArc energy: .*{reason}.*for example of type stablelm"
    ):
        MonArcForCausalLM.from_causal_lm(AutoModelForCausalLM.from_config(config))


def test_what_is_no_causal_lm_is_refused():
    with pytest.raises(TypeError, match="needs a transformers causal language model or a path to one, got int"):
        MonArcForCausalLM.from_causal_lm(3)
    with pytest.raises(TypeError, match="has its energy already"):
        MonArcForCausalLM.from_causal_lm(tiny_monarc())
    with pytest.raises(TypeError, match=r"\['num_negative'\] are no fields of MonArcConfig; known: .*num_negatives"):
        MonArcForCausalLM.from_causal_lm(tiny_monarc().lm, num_negative=3)


def test_the_check_leaves_the_model_as_it_was():
    lm = tiny_monarc("llama", text={"attn_implementation": "eager"}).lm.train()
    state = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    model = MonArcForCausalLM.from_causal_lm(lm, energy_head="linear")
    assert lm.training
    assert lm.config._attn_implementation == "eager"
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.lm.state_dict().items())
