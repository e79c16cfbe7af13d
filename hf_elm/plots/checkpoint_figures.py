"""From a saved model or a run to a figure file: one writer per kind of picture."""

from pathlib import Path

import datasets

from ..checkpoint_likelihood import corpus_part
from ..saved_models import load_checkpoint
from ..trainers.corpora import load_corpus
from ..trainers.packing import iter_packed_rows, pack_rows
from ..training_run import corpus_options
from .descent_animation import descent_animation, save_animation
from .energy_landscape import energy_landscape, plot_energy_landscape
from .figure_files import save_figure
from .position_energies import plot_position_energies, position_energies
from .refinement_trajectory import plot_refinement_trajectory, refinement_trajectory
from .thinking_gain import plot_thinking_gain, thinking_gain
from .token_energies import plot_token_energies, token_energies


# F may be hundreds of nats and fall by thousandths, of which float32 makes stairs: up to so many parameters float64 is used
_EXACT_UP_TO = 50_000_000


def write_checkpoint_figure(
    kind: str, checkpoint: str, output: str, dpi: int, device: str | None = None, seed: int = 0, **settings
) -> Path:
    """Loads the model, computes, draws, writes; the path written.

    Args:
        kind: "landscape", "trajectory", "tokens", "positions", "gain" or "animate".
        output: new file.
        seed: of the corpus split and of random directions.
        settings: the other keys of ``hf-elm plot KIND``; None = as the function's default.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see the functions called.
    """
    model, tokenizer = load_checkpoint(checkpoint, device, "float32")  # half precision makes steps of its own
    if kind != "gain" and model.num_parameters() <= _EXACT_UP_TO and model.device.type in ("cpu", "cuda"):
        model = model.double()
    options = {name: value for name, value in settings.items() if value is not None}
    if kind == "landscape":
        mode = options.pop("mode")
        figure = plot_energy_landscape(energy_landscape(model, tokenizer, seed=seed, **options), mode)
    elif kind == "trajectory":
        figure = plot_refinement_trajectory(refinement_trajectory(model, tokenizer, **options))
    elif kind == "tokens":
        figure = plot_token_energies(token_energies(model, tokenizer, **options))
    elif kind == "positions":
        figure = plot_position_energies(position_energies(model, tokenizer, **options))
    elif kind == "gain":
        rows = corpus_rows(tokenizer, options.pop("data"), options.pop("part"), seed)
        figure = plot_thinking_gain(thinking_gain(model, rows, **options))
    else:
        fps = options.pop("fps")
        film = descent_animation(model, tokenizer, seed=seed, **options)
        return save_animation(film, output, fps, dpi)
    return save_figure(figure, output, dpi)


def corpus_rows(tokenizer, data: dict, part: str, seed: int):
    """The rows of ``part`` ("held_out", "train", "all") of the corpus that ``data`` describes, packed as in training."""
    texts = corpus_part(load_corpus(**corpus_options(data), seed=seed), part)
    pack = pack_rows if isinstance(texts, datasets.Dataset) else iter_packed_rows
    packing = {"strategy": data["strategy"], "reset_position_ids": data["reset_position_ids"], "seed": seed}
    return pack(texts, tokenizer, data["sequence_length"], **packing)
