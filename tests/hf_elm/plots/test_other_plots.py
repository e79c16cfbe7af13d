"""Positions, gain, training and film: their numbers against the model's, and what the pictures hold."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hf_elm.plots.descent_animation import descent_animation, film_frames, plot_descent_frame, save_animation
from hf_elm.plots.figure_files import new_figure, save_figure, shown_text
from hf_elm.plots.position_energies import plot_position_energies, position_energies
from hf_elm.plots.refinement_trajectory import plot_refinement_trajectory, refinement_trajectory
from hf_elm.plots.thinking_gain import entropy_bins, plot_thinking_gain, thinking_gain
from hf_elm.plots.token_energies import plot_token_energies, token_energies
from hf_elm.plots.training_curves import plot_training_curves, training_curves
from tests.hf_elm.plots.tiny_plots import PROMPT, byte_tokenizer, tiny_model


def drawn(figure):
    """Draws everything: what matplotlib cannot draw raises here."""
    figure.canvas.draw()
    return figure


# -------------------------------------------------------------------------------------------- prompts


def test_position_energies_are_the_models(tmp_path):
    model = tiny_model()
    data = position_energies(model, byte_tokenizer(), PROMPT, think_steps=3)
    ids = byte_tokenizer()(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        assert_close(data.energies, model(ids, think_steps=3).energies[:, 0])
    assert (data.falls[1:] < 0).all()
    assert data.labels == [repr(character) for character in PROMPT]
    upper, lower = drawn(plot_position_energies(data)).axes[:2]
    assert_close(torch.tensor(upper.images[0].get_array().data), data.falls[1:])
    assert_close(torch.tensor(lower.images[0].get_array().data), data.energies)


def test_trajectory_and_token_pictures():
    model = tiny_model()
    data = refinement_trajectory(model, byte_tokenizer(), PROMPT, think_steps=2)
    figure = drawn(plot_refinement_trajectory(data))
    parts = figure.axes[0]
    heights = torch.zeros(3, dtype=torch.float64)
    for bars in parts.containers:
        heights += torch.tensor([bar.get_height() for bar in bars], dtype=torch.float64)
    assert_close(
        heights, data.energies - data.energies[0], atol=1e-5, rtol=1e-5
    )  # the stack adds up to F (drawn in float32)
    tokens = token_energies(model, byte_tokenizer(), PROMPT, num_tokens=3)
    (ax,) = drawn(plot_token_energies(tokens)).axes
    assert [bar.get_width() for bar in ax.containers[0]] == tokens.before.tolist()
    assert [bar.get_width() for bar in ax.containers[1]] == tokens.after.tolist()


def test_film_starts_at_system_one_passes_every_step_and_descends(tmp_path):
    from PIL import Image

    model = tiny_model()
    data = descent_animation(model, byte_tokenizer(), PROMPT, think_steps=2, frames_per_step=3, grid=5, num_tokens=4)
    assert data.steps.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert_close(data.energies[::3], data.landscape.path_energies, atol=1e-10, rtol=1e-10)
    assert_close(data.points[::3], data.landscape.path, atol=1e-9, rtol=0)
    assert (data.energies.diff() < 0).all()
    with torch.no_grad():
        ids = byte_tokenizer()(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
        top = model(ids, think_steps=2).logits[0, -1].softmax(-1).topk(1).values
    assert_close(data.probs[-1, :1], top)
    assert len(drawn(plot_descent_frame(data, 3)).axes) == 3
    path = save_animation(data, tmp_path / "film.gif", fps=10, dpi=40)
    with Image.open(path) as film:
        assert (film.format, film.n_frames, film.info["duration"]) == ("GIF", 7, 1000)
    first, *_, last = film_frames(data, dpi=40)
    assert first.tobytes() != last.tobytes()
    with pytest.raises(ValueError, match="fps"):
        save_animation(data, tmp_path / "other.gif", fps=0)
    with pytest.raises(ValueError, match=r"must end in \.gif"):
        save_animation(data, tmp_path / "film.png")


# ----------------------------------------------------------------------------------------------- gain


def rows(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(2, 250, (length,), generator=generator).tolist()} for length in lengths]


def test_gain_is_the_nll_of_each_number_of_steps():
    model, data = tiny_model(), rows(11, 7, 13)
    gain = thinking_gain(model, data, think_steps=3)
    assert gain.steps == 2
    for steps in range(4):
        total, sums = 0.0, []
        for row in data:
            ids = torch.tensor([row["input_ids"]])
            with torch.no_grad():
                logits = model(ids, think_steps=steps).logits[0, :-1]
            sums.append(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            total += len(logits)
        assert_close(gain.nll[steps], sum(sums) / total, atol=1e-10, rtol=1e-10)
        assert_close(gain.gains[steps], gain.nll[steps] - gain.nll[0], atol=1e-10, rtol=1e-8)
    assert_close(gain.deltas.mean(), gain.gains[2], atol=1e-10, rtol=1e-8)
    assert gain.rows.bincount().tolist() == [10, 6, 12]
    assert gain.gain_errors[0] == 0
    assert (gain.nll_errors > 0).all()


def test_gain_counts_no_document_start_and_stops_after_enough_tokens():
    model = tiny_model()
    row = rows(12)[0] | {"segment_ids": [0] * 5 + [1] * 5 + [-1] * 2}
    assert len(thinking_gain(model, [row]).deltas) == 8
    assert thinking_gain(model, [row]).nll_errors.isnan().all()  # one row has no spread
    stopped = thinking_gain(model, rows(*[9] * 40), max_tokens=8)
    assert len(stopped.deltas) < 40 * 8
    with pytest.raises(ValueError, match="no target"):
        thinking_gain(model, rows(1))
    with pytest.raises(ValueError, match="max_tokens"):
        thinking_gain(model, rows(4), max_tokens=0)


def test_entropy_bins_hold_every_token_once():
    gain = thinking_gain(tiny_model(), rows(23, 31, 17))
    bins = entropy_bins(gain, bins=5)
    edges = bins.edges
    assert edges[0] == gain.entropies.min()
    assert edges[-1] == gain.entropies.max()
    for index in range(5):
        above = gain.entropies >= edges[index]
        inside = above & ((gain.entropies < edges[index + 1]) if index < 4 else True)
        assert_close(bins.deltas[index], gain.deltas[inside].mean())
        assert_close(bins.entropies[index], gain.entropies[inside].mean())
    figure = drawn(plot_thinking_gain(gain))
    counted = sum(patch.get_height() for patch in figure.axes[2].patches)
    assert counted == len(gain.deltas)


# ------------------------------------------------------------------------------------------- training


def write_metrics(path, records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail, encoding="utf-8")


def test_training_curves_of_nano_ebm(tmp_path):
    folder = tmp_path / "runs" / "first"
    (folder / "checkpoint-2").mkdir(parents=True)
    records = [
        {
            "step": 1,
            "loss": 3.0,
            "nll_s1": 3.1,
            "nll_s2": None,
            "delta_nll": -0.1,
            **{f"alpha_{k}": 0.9 for k in range(1, 12)},
        },
        {"step": 2, "loss": 2.0, "nll_s1": 2.1, "nll_s2": 1.9, "delta_nll": -0.2},
        {"step": 2, "eval_loss": 2.5, "eval_nll_s2": 2.4, "eval_energy_gap": 0.03},
    ]
    write_metrics(folder / "metrics.jsonl", records, tail='{"step": 3, "loss"')  # cut off by a kill
    data = training_curves(folder / "checkpoint-2")
    assert data.name == "first"
    assert data.training["loss"] == ([1, 2], [3.0, 2.0])
    assert data.training["nll_s2"][1][0] != data.training["nll_s2"][1][0]  # NaN
    assert data.evaluation["energy_gap"] == ([2], [0.03])
    panels = {panel.title: panel.names for panel in data.panels()}
    assert panels["step sizes of thinking"] == tuple(f"alpha_{k}" for k in range(1, 12))
    assert panels["fall of the free energy by thinking"] == ("energy_gap",)
    labels = [text.get_text() for text in drawn(plot_training_curves(data)).axes[0].get_legend().get_texts()]
    assert labels == ["loss", "loss, held out", "nll_s1", "nll_s2", "nll_s2, held out"]


def test_training_curves_of_monarc(tmp_path):
    record = {"step": 5, "loss": 3.0, "lm_loss": 2.9, "elm_nll_bound": 2.8, "z_hat": 1.1, "energy_loss": 0.9}
    record |= {"energy_data": -0.2, "energy_negatives": 0.1}
    write_metrics(tmp_path / "metrics.jsonl", [record, {f"eval_{k}": v for k, v in record.items()} | {"step": 5}])
    data = training_curves(tmp_path / "metrics.jsonl")
    assert [panel.names for panel in data.panels()] == [
        ("lm_loss", "elm_nll_bound"), ("gain_bound",), ("energy_data", "energy_negatives"), ("log_mean_z",), ("energy_loss",),
    ]  # fmt: skip
    assert len(drawn(plot_training_curves(data, tmp_path / "curves.svg")).axes) == 5
    assert (tmp_path / "curves.svg").is_file()


def test_training_curves_need_metrics(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        training_curves(tmp_path)
    write_metrics(tmp_path / "metrics.jsonl", [{"step": 1, "speed": 3}], tail="not json\n[1]\n")
    with pytest.raises(ValueError, match="none of the metrics"):
        training_curves(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        training_curves(tmp_path)


# ---------------------------------------------------------------------------------------------- files


def test_a_figure_never_replaces_a_file_and_leaves_nothing_behind_on_failure(tmp_path):
    path = tmp_path / "figure.svg"
    save_figure(new_figure(2, 2), path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists"):
        save_figure(new_figure(3, 3), path)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="must end in"):
        save_figure(new_figure(2, 2), tmp_path / "figure.docx")

    class Broken:
        def savefig(self, path, dpi):
            path.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_figure(Broken(), tmp_path / "other.png")
    assert [file.name for file in tmp_path.iterdir()] == ["figure.svg"]


def test_text_is_shown_letter_by_letter():
    assert shown_text("'$'") == r"'\$'"
    assert shown_text("漢") == r"\u6f22"  # the font that comes with matplotlib has no such letter
    figure = new_figure(3, 1)
    figure.suptitle(shown_text("'$a$' \\frac{ _^ 漢"))
    drawn(figure)
