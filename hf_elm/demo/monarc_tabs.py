"""The tabs of a MonArc model: a continuation with the candidates of every token, and the scores of a text."""

from ..saved_models import load_checkpoint
from ..trained_windows import trained_window
from .candidate_steps import candidate_steps
from .example_prompts import example_prompt
from .lazy_gradio import gr
from .monarc_html import candidate_table, score_flow, score_table, score_totals, step_flow
from .page import Tab, html_view, with_clear_errors
from .request_limits import MAX_CANDIDATES, MAX_NEW_TOKENS, MAX_PROMPT, MAX_SCORED_TOKENS
from .shared_model import SharedModel
from .step_view import KEPT_SECONDS, StepView
from .token_scores import score_text


DESCRIPTION = "MonArc: a language model p_LM with a residual energy E on every token, p = p_LM · exp(−E) / Z. Lower energy is likelier."
COLOURS = {"gain: log p − log p_LM": "gain", "energy E": "energies", "log p_LM": "lm"}


def load_tabs(checkpoint: str, device: str | None, dtype: str | None) -> tuple[str, list[Tab]]:
    """The description and the tabs of the model at ``checkpoint``."""
    shared = SharedModel(*load_checkpoint(checkpoint, device, dtype))
    prompts = [example_prompt(checkpoint, shared.tokenizer, kind) for kind in ("start", "text")]
    window = trained_window(checkpoint).tokens
    return DESCRIPTION, [
        Tab("Generate", lambda: generate_tab(shared, prompts[0])),
        Tab("Score", lambda: score_tab(shared, prompts[1], window)),
    ]


def generate_tab(shared: SharedModel, prompt: str) -> None:
    """Prompt and numbers on the left; the continuation and the candidates of one step on the right."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            inputs = _generation_inputs(prompt, shared.model.generation_config.num_candidates)
            with gr.Row():
                start = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column(scale=5, min_width=420):
            view = StepView(
                "Continuation; choose a token to see its candidates", step_flow, candidate_table, "continuation"
            )

    @with_clear_errors
    def generate(prompt, *numbers):
        steps = []
        yield view.values(steps, prompt)
        for step in candidate_steps(shared, prompt, *numbers):
            steps.append(step)
            yield view.values(steps, prompt)
        if not steps:
            gr.Info("The model ended the text at once; try another seed.")

    running = start.click(generate, inputs, view.outputs, show_progress="minimal")
    stop.click(None, cancels=[running])


def _generation_inputs(prompt, num_candidates):
    return [
        gr.Textbox(prompt, label="Prompt", lines=3, max_lines=12, max_length=MAX_PROMPT, elem_classes="elm-mono"),
        gr.Slider(
            1, MAX_CANDIDATES, min(num_candidates, MAX_CANDIDATES), step=1, label="Candidates K per token",
            info="1: the language model alone",
        ),
        gr.Slider(0.1, 2.0, 1.0, step=0.05, label="Temperature", info="of the language model"),
        gr.Slider(1, MAX_NEW_TOKENS, 80, step=1, label="New tokens, at most"),
        gr.Number(0, label="Seed", precision=0, minimum=0),
    ]  # fmt: skip


def score_tab(shared: SharedModel, words: str, window: int | None) -> None:
    """A text above, read in windows of so many tokens; its totals, its tokens in colours and one line per token below."""
    scored = gr.State(None, time_to_live=KEPT_SECONDS)
    label = f"Text (2 to {MAX_SCORED_TOKENS:,} tokens)"
    text = gr.Textbox(words, label=label, lines=5, max_lines=16, max_length=MAX_PROMPT, elem_classes="elm-mono")
    start = gr.Button("Score", variant="primary")
    totals = html_view("totals")
    colour = gr.Radio(list(COLOURS), value=next(iter(COLOURS)), label="Colour of the tokens")
    flow = html_view("heat-map")
    with gr.Accordion("Every token", open=False):
        rows = html_view("token-table")

    @with_clear_errors
    def score(words, name):
        scores = score_text(shared, words, window)
        return scores, score_totals(scores), score_flow(scores, COLOURS[name]), score_table(scores)

    def recolour(scores, name):
        return score_flow(scores, COLOURS[name]) if scores else ""

    start.click(score, [text, colour], [scored, totals, flow, rows])
    colour.change(recolour, [scored, colour], flow, show_progress="hidden")
