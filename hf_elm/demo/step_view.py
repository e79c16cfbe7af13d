"""A continuation whose tokens can be chosen, by mouse, Tab key or slider, and a panel about the chosen one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .lazy_gradio import gr


SELECT_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-step]');
  if (!button) return;
  element.querySelectorAll('button[aria-pressed="true"]').forEach((other) => other.setAttribute('aria-pressed', 'false'));
  button.setAttribute('aria-pressed', 'true');
  trigger('select', {step: Number(button.dataset.step)});
});
"""
KEPT_SECONDS = 3600  # of a visitor who has left


class StepView:
    """The components, laid out where it is made; every visitor has steps of their own.

    Args:
        label: of the continuation.
        draw_flow: (steps, selected index or None, prompt) -> HTML of `page_html.token_flow`.
        draw_panel: (steps, index) -> HTML about that step.
        name: ids of the elements begin with it.
    """

    def __init__(
        self,
        label: str,
        draw_flow: Callable[[Sequence, int | None, str], str],
        draw_panel: Callable[[Sequence, int], str],
        name: str,
    ):
        self.label, self._draw_flow, self.draw_panel = label, draw_flow, draw_panel
        self.steps = gr.State([], time_to_live=KEPT_SECONDS)
        self.prompt = gr.State("", time_to_live=KEPT_SECONDS)
        self.flow = gr.HTML(
            self.draw_flow([], None, ""), js_on_load=SELECT_JS, apply_default_css=False, elem_id=f"{name}-flow"
        )
        self.number = gr.Slider(1, 2, value=1, step=1, label="Step: which token of the continuation")
        self.panel = gr.HTML("", js_on_load=None, apply_default_css=False, elem_id=f"{name}-panel")
        self.outputs = [self.steps, self.prompt, self.flow, self.number, self.panel]
        self.flow.select(self._choose, [self.steps], [self.number, self.panel], show_progress="hidden")
        moved = [self.steps, self.prompt, self.number]
        gr.on([self.number.release, self.number.input], self._move, moved, [self.flow, self.panel],
              show_progress="hidden", trigger_mode="always_last")  # fmt: skip

    def draw_flow(self, steps: Sequence, selected: int | None, prompt: str) -> str:
        """The continuation under its label."""
        return f'<p class="elm-label">{self.label}</p>{self._draw_flow(steps, selected, prompt)}'

    def values(self, steps: Sequence, prompt: str) -> tuple:
        """What the components show of ``steps``, the last one chosen; for ``outputs``."""
        if not steps:
            return [], prompt, self.draw_flow([], None, prompt), gr.Slider(minimum=1, maximum=2, value=1), ""
        last = len(steps) - 1
        slider = gr.Slider(minimum=1, maximum=max(2, len(steps)), value=len(steps))
        return steps, prompt, self.draw_flow(steps, last, prompt), slider, self.draw_panel(steps, last)

    def _choose(self, steps, event: gr.EventData):
        index = _within(steps, event.step)
        return index + 1, self.draw_panel(steps, index) if steps else ""

    def _move(self, steps, prompt, number):
        index = _within(steps, (number or 1) - 1)
        return self.draw_flow(steps, index, prompt), self.draw_panel(steps, index) if steps else ""


def _within(steps, index):
    return max(0, min(int(index), len(steps) - 1))
