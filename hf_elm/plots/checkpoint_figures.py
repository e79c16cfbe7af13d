"""From a saved model or a run to a figure file: one writer per kind of picture."""

from pathlib import Path

from ..checkpoint_likelihood import packed_part
from ..command_schemas import PLOT_FAMILIES
from ..saved_models import load_checkpoint
from ..trained_windows import trained_window
from .descent_animation import descent_animation, save_animation
from .energy_landscape import energy_landscape, plot_energy_landscape
from .figure_files import save_figure
from .heatmap_page import save_heatmap_page
from .heatmap_picture import plot_text_heatmap
from .position_energies import plot_position_energies, position_energies
from .refinement_trajectory import plot_refinement_trajectory, refinement_trajectory
from .residual_energies import plot_residual_energies, residual_energies
from .text_heatmap import text_heatmap
from .thinking_gain import plot_thinking_gain, thinking_gain
from .token_calibration import plot_token_calibration, token_calibration
from .token_energies import plot_token_energies, token_energies


# F may be hundreds of nats and fall by thousandths, of which float32 makes stairs: up to so many parameters float64 is used
_EXACT_UP_TO = 50_000_000


def write_checkpoint_figure(
    kind: str, checkpoint: str, output: str, dpi: int, device: str | None = None, seed: int = 0, **settings
) -> Path:
    """Loads the model, computes, draws, writes; the path written.

    Args:
        kind: a key of `hf_elm.command_schemas.PLOT_FAMILIES`.
        output: new file.
        seed: of the corpus split and of random directions.
        settings: the other keys of ``hf-elm plot KIND``; None = as the function's default.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see the functions called.
    """
    if PLOT_FAMILIES[kind] == "monarc":
        return _write_energy_figure(kind, checkpoint, output, dpi, device, seed, settings)
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
        rows = packed_part(options.pop("data"), options.pop("part"), tokenizer, seed)
        figure = plot_thinking_gain(thinking_gain(model, rows, **options))
    else:
        fps = options.pop("fps")
        film = descent_animation(model, tokenizer, seed=seed, **options)
        return save_animation(film, output, fps, dpi)
    return save_figure(figure, output, dpi)


def _write_energy_figure(kind, checkpoint, output, dpi, device, seed, settings):
    """The pictures of a MonArc model, computed in the precision that it was saved in."""
    model, tokenizer = load_checkpoint(checkpoint, device)
    options = {name: value for name, value in settings.items() if value is not None}
    if kind == "heatmap":
        colour, title = options.pop("colour"), f"{Path(checkpoint).name or checkpoint}: energies of a text"
        options["window"] = trained_window(checkpoint).tokens
        heatmap = text_heatmap(model, tokenizer, options.pop("text"), seed=seed, **options)
        if str(output).lower().endswith(".html"):
            return save_heatmap_page(heatmap, output, colour, title)
        return save_figure(plot_text_heatmap(heatmap, colour), output, dpi)
    rows = packed_part(options.pop("data"), options.pop("part"), tokenizer, seed)
    if kind == "energies":
        figure = plot_residual_energies(residual_energies(model, rows, tokenizer=tokenizer, seed=seed, **options))
    else:
        figure = plot_token_calibration(token_calibration(model, rows, tokenizer=tokenizer, seed=seed, **options))
    return save_figure(figure, output, dpi)
