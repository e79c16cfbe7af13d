import dataclasses
import re

import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_elm.trainers.residual_energy_config import ResidualEnergyConfig


def test_yaml_and_command_line_give_the_same_arguments(tmp_path):
    """YAML reads ``1e-3`` as text; None-able fields take values on the command line."""
    (tmp_path / "recipe.yaml").write_text(
        "output_dir: out\nlearning_rate: 1e-3\nfreeze_lm: true\nnum_negatives: 2\nwarmup_steps: 1e-1\n"
    )
    parser = HfArgumentParser(ResidualEnergyConfig)
    (from_yaml,) = parser.parse_yaml_file(str(tmp_path / "recipe.yaml"))
    options = {
        "output_dir": "out",
        "learning_rate": "1e-3",
        "freeze_lm": "true",
        "num_negatives": "2",
        "warmup_steps": "0.1",
    }
    command_line = [word for name, value in options.items() for word in (f"--{name}", value)]
    (from_command_line,) = parser.parse_args_into_dataclasses(command_line)
    assert from_yaml.to_dict() == from_command_line.to_dict()
    assert (from_yaml.learning_rate, from_yaml.freeze_lm, from_yaml.num_negatives, from_yaml.warmup_steps) == (
        1e-3,
        True,
        2,
        0.1,
    )


def test_every_own_field_is_documented():
    """Fields of this class, and those whose default it changes, stand in its docstring."""
    inherited = {item.name: item.default for item in dataclasses.fields(TrainingArguments)}
    own = {
        item.name
        for item in dataclasses.fields(ResidualEnergyConfig)
        if item.name not in inherited or item.default != inherited[item.name]
    }
    documented = re.findall(r"^        (\w+): ", ResidualEnergyConfig.__doc__, flags=re.MULTILINE)
    assert own <= set(documented), own - set(documented)
    assert "energy_loss" in own
    assert "learning_rate" in own


def test_schedule_with_a_floor_and_direction_of_the_best_metric():
    assert ResidualEnergyConfig("out").lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert ResidualEnergyConfig("out", lr_scheduler_kwargs={"min_lr": 1e-5}).lr_scheduler_kwargs == {"min_lr": 1e-5}
    assert not ResidualEnergyConfig("out", lr_scheduler_type="linear").lr_scheduler_kwargs
    assert ResidualEnergyConfig("out", metric_for_best_model="elm_nll_bound").greater_is_better is False


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("energy_loss", "hinge", '"direct", "nce" or "rank"'),
        ("energy_loss_weight", -1.0, "zero or positive"),
        ("num_negatives", 0, "at least 1"),
        ("negative_fraction", 0.0, r"\(0, 1\]"),
        ("energy_learning_rate", -1.0, "zero or positive"),
        ("max_length", 1, "at least 2"),
        ("packing_strategy", "random", '"wrapped" or "greedy"'),
        ("label_smoothing_factor", 0.1, "0"),
        ("logging_nan_inf_filter", True, "False with stop_on_nonfinite"),
        ("learning_rate", "fast", "a number"),
    ],
)
def test_values_out_of_range_are_refused(field, value, rule):
    with pytest.raises(ValueError, match=rf"^{field} must be .*{rule}.*{value!r}"):
        ResidualEnergyConfig("out", **{field: value})
