"""Gradio, imported when something of it is first used: the modules that lay out pages can be imported without it."""

import os


class _Gradio:
    def __getattr__(self, name: str):
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
        try:
            import gradio
        except ImportError as error:
            raise ImportError(
                f'the package {error.name} is missing; install it with pip install "hf_elm[demo]".'
            ) from error
        return getattr(gradio, name)


gr = _Gradio()
