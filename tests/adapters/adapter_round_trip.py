"""What every adapter must survive: training of the right weights, saving, loading in every way, merging, disabling, resuming."""

import peft
import torch
from torch.testing import assert_close

from hf_elm.trainers.peft_adapters import base_model


MERGED = 1e-5  # float32: W x + B A x against (W + B A) x, at outputs of the order of 1 to 10


def lora(target_modules, **fields):
    """A LoRA of rank 2 without dropout; the weights that start at zero start there."""
    return peft.LoraConfig(r=2, target_modules=target_modules, **fields)


def with_base(model, folder):
    """``model`` as it is loaded again from ``folder``, so that an adapter knows where its base is."""
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def outputs(model, ids, keys):
    with torch.no_grad():
        out = model.eval()(input_ids=ids)
    return {key: out[key] for key in keys}


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def check_trained(trainer, before, expected):
    """What required gradients has moved, all of it is ``expected(name)``, and nothing else has moved."""
    after = weights(base_model(trainer.model))
    trained = {name for name, p in base_model(trainer.model).named_parameters() if p.requires_grad}
    assert trained
    assert all(expected(name) for name in trained), sorted(trained)
    for name, value in after.items():
        original = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        if name in trained:
            source = name.replace(".modules_to_save.default.", ".")
            assert source not in before or not torch.equal(value, before[source]), f"{name} did not move"
            assert source in before or value.any(), f"{name} is still zero"
        else:
            assert torch.equal(value, before[original]), f"{name} moved"


def check_round_trip(trainer, base, folder, ids, keys, auto=(), unchanged=()):
    """Loads the adapter of ``trainer`` in every way, merges and disables it.

    Args:
        base: folder of the base model.
        auto: classes whose ``from_pretrained`` takes the adapter's folder.
        unchanged: outputs that the adapter must leave bit-identical.

    Returns:
        the model merged.
    """
    trainer.save_model(str(folder))
    model_class = type(base_model(trainer.model))
    plain = outputs(model_class.from_pretrained(base), ids, keys)
    expected = outputs(trainer.model, ids, keys)
    for key in keys:
        if key in unchanged:
            assert torch.equal(expected[key], plain[key]), key
        else:
            assert (expected[key] - plain[key]).abs().max() > 1e-3, f"{key} has not changed: nothing would be tested"
    loaded = peft.PeftModel.from_pretrained(model_class.from_pretrained(base), folder)
    for again in (loaded, *(each.from_pretrained(folder) for each in auto)):
        for key, value in outputs(again, ids, keys).items():  # the same operations on the same weights
            assert torch.equal(value, expected[key]), (type(again).__name__, key)
    with loaded.disable_adapter():
        for key, value in outputs(loaded, ids, keys).items():
            assert torch.equal(value, plain[key]), key
    merged = loaded.merge_and_unload()
    assert type(merged) is model_class
    assert not [name for name, _ in merged.named_parameters() if "lora_" in name or "modules_to_save" in name]
    merged.save_pretrained(folder / "merged")
    for again in (merged, model_class.from_pretrained(folder / "merged")):
        for key, value in outputs(again, ids, keys).items():
            if key in unchanged:
                assert torch.equal(value, plain[key]), key
            assert_close(value, expected[key], atol=MERGED, rtol=MERGED)
    return merged


def check_resume(make_trainer, folder):
    """``make_trainer(output_dir, **arguments)`` trained for 4 steps, and for 2 and then 2 more, ends with the same weights."""
    whole = make_trainer(folder / "whole", max_steps=4)
    whole.train()
    make_trainer(folder / "parts", max_steps=2, save_strategy="steps", save_steps=2).train()
    resumed = make_trainer(folder / "parts", max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    for (name, ours), (_, theirs) in zip(
        resumed.model.state_dict().items(), whole.model.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name
