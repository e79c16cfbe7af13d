"""Configurations of the three families: refused by field, or fit to build a model of and run it."""

import json
import math

import pytest
import torch
from hypothesis import strategies as st

from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForMaskedLM
from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM
from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement
from tests.fuzz.exploration import amounts, explore
from tests.fuzz.oracle import case_folder, refused
from tests.fuzz.values import ANY, ANY_OR_HUGE


LM = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
OWN = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
ENCODER = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 24,
    "filter_order": 4,
    "max_position_embeddings": 16,
}
BACKBONES = ("llama", "stablelm", "gpt2", "gpt_neox", "qwen2", "bert", "t5", "mamba", "no_such", "", "../x", 7, None)
FAMILIES = {  # config, model, a valid tiny configuration
    "monarc": (MonArcConfig, MonArcForCausalLM, {"text_config": {"model_type": "llama", **LM}}),
    "nano_ebm": (NanoEBMConfig, NanoEBMForRefinement, OWN),
    "m2_bert": (M2BertConfig, M2BertForMaskedLM, ENCODER),
}
SHARED = (  # of every configuration of transformers
    "dtype",
    "torch_dtype",
    "architectures",
    "auto_map",
    "id2label",
    "label2id",
    "num_labels",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "attn_implementation",
    "quantization_config",
    "use_cache",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "is_encoder_decoder",
    "problem_type",
    "model_type",
    "transformers_version",
    "rope_parameters",
    "rope_scaling",
    "head_dim",
    "no_such_field",
)
SIZES = (
    "_size",
    "num_",
    "_units",
    "_heads",
    "_k",
    "n_persistent",
    "_order",
    "_dim",
    "_embeddings",
    "_rank",
    "_context",
    "_steps",
    "_scale",
)
LARGEST = 512  # size of a field, up to which a model is built


def fields_of(config):
    return sorted(set(config.__init__.__annotations__) - {"return"})


def overrides(family):
    config = FAMILIES[family][0]
    names = st.sampled_from([*fields_of(config), *fields_of(config), *SHARED])
    changes = st.dictionaries(names, ANY_OR_HUGE, min_size=1, max_size=3)
    if "text_config" not in fields_of(config):
        return changes
    inner = st.dictionaries(st.sampled_from([*LM, *SHARED]), ANY_OR_HUGE, max_size=2)
    nested = st.tuples(st.sampled_from(BACKBONES), inner).map(
        lambda drawn: {"text_config": {**LM, "model_type": drawn[0], **drawn[1]}}
    )
    return st.one_of(changes, nested, st.tuples(nested, changes).map(lambda both: {**both[1], **both[0]}))


def numbers(value, name=""):
    """(name, number) of all whole numbers in nested settings."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, str(key))
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


def is_small(config):
    """Whether a model of it can be built in a moment."""
    return all(
        -LARGEST <= number <= LARGEST
        for name, number in numbers(config.to_dict())
        if any(part in name for part in SIZES)
    )


def run_once(model_class, config, forward):
    """Build the model; and run it, unless its language model is of fields that transformers took without a look."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    if not forward:
        return
    vocabulary = model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        model(torch.arange(8).unsqueeze(0) % vocabulary)


def names_of(changes):
    """What a refusal may name: the fields that were changed."""
    inner = changes.get("text_config")
    if not isinstance(inner, dict):
        return [*changes]
    other_name = ["rope_scaling"] if "rope_parameters" in inner else []  # as the outer configuration calls it
    return [*changes, *inner, *other_name, "ForCausalLM", "LMHeadModel"]  # the language model, by its class


def check_config(family, changes):
    config_class, model_class, valid = FAMILIES[family]
    made = []
    if refused(lambda: made.append(config_class(**{**valid, **changes})), names_of(changes), changes):
        return
    if is_small(made[0]) and set(changes) <= set(fields_of(config_class)):
        refused(
            lambda: run_once(model_class, made[0], forward="text_config" not in changes), names_of(changes), changes
        )


@pytest.mark.parametrize("family", FAMILIES)
@amounts(few=25, many=250)
def test_a_configuration_is_refused_by_field_or_runs(family, amount):
    explore("configs", lambda changes: check_config(family, changes), amount, changes=overrides(family))


def check_config_file(family, changes):
    config_class, _, valid = FAMILIES[family]
    with case_folder() as folder:
        content = config_class(**valid).to_dict() | changes
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
        folder.remember()
        refused(lambda: config_class.from_pretrained(str(folder.root)), names_of(changes), changes)
        folder.assert_kept(also_nothing_new=True)


@pytest.mark.parametrize("family", FAMILIES)
@amounts(few=8, many=120)
def test_a_configuration_file_is_refused_by_field_or_read(family, amount):
    explore("config files", lambda changes: check_config_file(family, changes), amount, changes=overrides(family))


def check_saved(family, changes):
    """What is accepted is written and read again without a change."""
    config_class, _, valid = FAMILIES[family]
    try:
        config = config_class(**{**valid, **changes})
    except (ValueError, TypeError):
        return
    with case_folder() as folder:
        config.save_pretrained(folder.root)
        again = config_class.from_pretrained(str(folder.root))
        own = fields_of(config_class)
        first, second = config.to_dict(), again.to_dict()
        for name in own:
            assert same(first.get(name), second.get(name)), (
                f"{name}: {first.get(name)!r} came back as {second.get(name)!r}"
            )


def same(one, other):
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return one == other


@pytest.mark.parametrize("family", FAMILIES)
@amounts(few=8, many=60)
def test_an_accepted_configuration_survives_saving(family, amount):
    names = st.sampled_from(fields_of(FAMILIES[family][0]))
    changes = st.dictionaries(names, ANY, min_size=1, max_size=2)
    explore("saved configs", lambda changes: check_saved(family, changes), amount, changes=changes)
