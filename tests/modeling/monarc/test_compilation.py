"""`torch.compile` gives the uncompiled numbers: the streams break the graph, what lies between them is compiled."""

import pytest
import torch
from torch.testing import assert_close

from tests.modeling.monarc.tiny_monarc import gradients, layout_inputs, scalar, tiny_monarc, tokens


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_a_compiled_model_trains_as_the_plain_one():
    """Backend aot_eager: tracing, functionalisation and the compiled backward, without the time that code generation takes."""
    model = tiny_monarc(
        "llama", text={"num_hidden_layers": 1}, energy_adapter_rank=2, energy_adapter_targets=["v_proj"]
    ).train()
    ids, inputs, results = tokens(2, 7), layout_inputs("packed", 7), []
    for run in (model, torch.compile(model, backend="aot_eager")):
        generator = torch.Generator().manual_seed(
            3
        )  # the negatives are drawn inside: the same generator, the same tokens
        out = run(input_ids=ids, labels=ids, num_negatives=2, generator=generator, **inputs)
        results.append(
            (out.negatives, out.energies, out.negative_energies, out.loss, gradients(model, scalar(out) + out.loss))
        )
    assert_close(results[1], results[0], atol=1e-10, rtol=1e-10)


def test_a_compiled_model_infers_as_the_plain_one():
    model = tiny_monarc("gpt2", text={"n_layer": 1})
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for layout in ("plain", "left"):
            inputs = {"input_ids": tokens(2, 7), **layout_inputs(layout, 7)}
            plain, ours = model(**inputs), compiled(**inputs)
            assert_close((ours.logits, ours.energies), (plain.logits, plain.energies), atol=1e-10, rtol=1e-10)
