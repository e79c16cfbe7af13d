"""Auto classes know every family whichever package is imported first, and importing hf_elm stays cheap."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
CHECK = """
config = AutoConfig.for_model("monarc")
assert type(config).__module__ == "hf_elm.modeling.monarc.configuration_monarc", type(config)
from transformers import AutoModel, AutoModelForCausalLM
for auto in (AutoModel, AutoModelForCausalLM):
    assert auto._model_mapping[type(config)].__name__ == "MonArcForCausalLM"
assert not [finder for finder in sys.meta_path if "AfterImport" in type(finder).__name__], "the hook stays"
"""
ORDERS = {
    "hf_elm first": """
import sys, hf_elm
assert "torch" not in sys.modules and "transformers" not in sys.modules
from transformers.generation.utils import GenerationMixin  # imports an Auto module in its own middle
from transformers import AutoConfig
""",
    "transformers first": """
import sys
from transformers import AutoConfig, AutoModelForCausalLM
import hf_elm
""",
    "the model's own module first": """
import sys
import hf_elm.modeling.monarc.modeling_monarc
from transformers import AutoConfig
""",
}


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_the_families_in_every_import_order(order):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ORDERS[order] + CHECK]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr


def test_top_level_names_are_lazy_and_complete():
    import hf_elm

    assert hf_elm.MonArcConfig.model_type == "monarc"
    assert hf_elm.MonArcForCausalLM.config_class is hf_elm.MonArcConfig
    assert "MonArcForCausalLM" in dir(hf_elm)
    with pytest.raises(AttributeError, match="MonArk"):
        _ = hf_elm.MonArk
