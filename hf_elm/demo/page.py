"""The Gradio page: a title, the family's tabs, and what all of them need."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .lazy_gradio import gr
from .page_html import CSS, escaped


WAITING = 64  # requests in the queue; more are turned away


@dataclass
class Tab:
    """A tab of the page.

    Attributes:
        title: as shown.
        build: lays out its components; called within the tab.
    """

    title: str
    build: Callable[[], None]


def build_page(checkpoint: str, description: str, tabs: list[Tab]) -> gr.Blocks:
    """The page of a loaded model.

    Args:
        checkpoint: folder or Hub id; the title names its last two parts.
        description: one line below the title.
    """
    name = "/".join(Path(checkpoint).parts[-2:])  # a shared page need not tell where the folder is
    with gr.Blocks(title=f"hf_elm: {name}", analytics_enabled=False, fill_width=True) as page:
        title = f"<h1>{escaped(name)}</h1><p>{escaped(description)}</p>"
        gr.HTML(title, elem_classes="elm-title", js_on_load=None, apply_default_css=False)
        for tab in tabs:
            with gr.Tab(tab.title):
                tab.build()
    return page.queue(max_size=WAITING, default_concurrency_limit=4)


def launch_options() -> dict:
    """Arguments of ``launch``: fonts of the visitor's system only, so that the page asks no other host for anything."""
    plain = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    theme = gr.themes.Default(font=plain, font_mono=mono, primary_hue="teal", secondary_hue="teal")
    theme = theme.set(
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700"
    )
    return {"theme": theme, "css": CSS, "footer_links": [], "ssr_mode": False, "show_error": False}


def with_clear_errors(function: Callable) -> Callable:
    """``function`` (or generator function) with the library's own errors shown on the page in their words."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*arguments):
            try:
                yield from function(*arguments)
            except (ValueError, TypeError) as error:
                raise shown_error(error) from error

        return generator

    @functools.wraps(function)
    def wrapper(*arguments):
        try:
            return function(*arguments)
        except (ValueError, TypeError) as error:
            raise shown_error(error) from error

    return wrapper


def shown_error(error: Exception) -> gr.Error:
    """The message of ``error`` on the page; it is text there, not HTML."""
    return gr.Error(escaped(" ".join(str(error).split())), duration=15, print_exception=False)


def html_view(name: str) -> gr.HTML:
    """A component for a piece of `page_html`, styled by it alone."""
    return gr.HTML("", js_on_load=None, apply_default_css=False, elem_id=name)
