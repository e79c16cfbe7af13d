"""The tabs of a nanoEBM: one prediction before and after thinking with its landscape, and generation with thinking."""

import itertools

from ..plots.energy_landscape import plot_energy_landscape
from ..saved_models import load_checkpoint
from .descent_figure import plot_descent
from .example_prompts import example_prompt
from .lazy_gradio import gr
from .nano_ebm_html import plain_flow, prediction_table, thinking_flow, token_panel
from .page import Tab, html_view, with_clear_errors
from .request_limits import MAX_NEW_TOKENS, MAX_PROMPT, MAX_THINK_STEPS
from .shared_model import SharedModel
from .step_view import StepView
from .thinking import think_about, thinking_tokens


DESCRIPTION = "nanoEBM: system 1 makes a prediction, and thinking refines it by descending a free energy F. Lower energy is likelier."


def load_tabs(checkpoint: str, device: str | None, dtype: str | None) -> tuple[str, list[Tab]]:
    """The description and the tabs of the model at ``checkpoint``."""
    shared = SharedModel(*load_checkpoint(checkpoint, device, dtype))
    prompts = [example_prompt(checkpoint, shared.tokenizer, kind) for kind in ("word", "start")]
    return DESCRIPTION, [
        Tab("Think", lambda: think_tab(shared, prompts[0])),
        Tab("Generate with thinking", lambda: generate_tab(shared, prompts[1])),
    ]


def think_tab(shared: SharedModel, prompt: str) -> None:
    """A prompt on the left; on the right the next token before and after thinking, the descent and the landscape."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            inputs = [_prompt(prompt), *_thinking_inputs(shared)]
            start = gr.Button("Think", variant="primary")
        with gr.Column(scale=5, min_width=420):
            predictions = html_view("predictions")
    descent = gr.Plot(label="Descent", show_label=False, format="png", elem_id="descent")
    landscape = gr.Plot(label="Free energy around the path", show_label=False, format="png", elem_id="landscape")

    @with_clear_errors
    def think(prompt, steps, top_k):
        trajectory, surroundings = think_about(shared, prompt, steps, top_k)
        shown = prediction_table(trajectory.labels, trajectory.probs, trajectory.energies)
        return shown, plot_descent(trajectory), plot_energy_landscape(surroundings)

    start.click(think, inputs, [predictions, descent, landscape])


def generate_tab(shared: SharedModel, prompt: str) -> None:
    """A continuation with thinking, its tokens to be chosen, and the one that system 1 alone gives for the same seed."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            inputs = [_prompt(prompt), *_thinking_inputs(shared)]
            inputs += [
                gr.Slider(0.1, 2.0, 1.0, step=0.05, label="Temperature"),
                gr.Slider(1, MAX_NEW_TOKENS, 80, step=1, label="New tokens, at most"),
                gr.Number(0, label="Seed", precision=0, minimum=0),
            ]
            both = gr.Checkbox(True, label="Also without thinking, same seed")
            with gr.Row():
                start = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column(scale=5, min_width=420):
            view = StepView(
                "With thinking; choose a token to see its prediction", thinking_flow, token_panel, "thinking"
            )
            without = html_view("without-thinking")

    @with_clear_errors
    def generate(beside, prompt, *numbers):
        streams = [thinking_tokens(shared, prompt, *numbers, use_thinking=thinks) for thinks in (True, False)]
        tokens, plain = [], []
        yield *view.values(tokens, prompt), ""
        for token, other in itertools.zip_longest(streams[0], streams[1] if beside else ()):
            tokens += [token] * (token is not None)
            plain += [other] * (other is not None)
            yield *view.values(tokens, prompt), _beside(plain, prompt) if beside else ""
        if not tokens:
            gr.Info("The model ended the text at once; try another seed.")

    running = start.click(generate, [both, *inputs], [*view.outputs, without], show_progress="minimal")
    stop.click(None, cancels=[running])


def _beside(tokens, prompt):
    return f'<p class="elm-label">Without thinking (system 1), same seed</p>{plain_flow(tokens, prompt)}'


def _prompt(text):
    return gr.Textbox(text, label="Prompt", lines=3, max_lines=12, max_length=MAX_PROMPT, elem_classes="elm-mono")


def _thinking_inputs(shared):
    saved = min(max(1, shared.model.config.think_steps), MAX_THINK_STEPS)
    vocabulary = shared.model.config.get_text_config().vocab_size
    return [
        gr.Slider(1, MAX_THINK_STEPS, saved, step=1, label="Thinking steps", info=f"{saved} as trained"),
        gr.Number(
            0, label="Top k", precision=0, minimum=0, maximum=vocabulary,
            info="only the k likeliest tokens of system 1 keep probability; 0: all",
        ),
    ]  # fmt: skip
