"""The keys of ``hf-elm demo``, as in `recipe_sections`. No heavy imports, so that help is instant."""

from dataclasses import dataclass


@dataclass
class DemoSection:
    """Where the page is served.

    Args:
        port: of the page; 0 is any free one.
        host: address to listen at; 0.0.0.0 lets other machines of the network in.
        share: also open a public link through Gradio's tunnel; everybody who has it can use the model.
    """

    port: int = 7860
    host: str = "127.0.0.1"
    share: bool = False
