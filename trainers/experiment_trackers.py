"""Where logs go beside ``metrics.jsonl``: the packages behind transformers' ``report_to``."""

import importlib.util
from collections.abc import Iterable


IN_THE_EXTRA = ("tensorboard", "trackio", "wandb")  # hf_elm[tracking]
_ALTERNATIVES = {"tensorboard": ("tensorboard", "tensorboardX")}


def require_trackers(report_to: Iterable[str]) -> None:
    """Refuses a tracker whose package is missing, before anything is loaded.

    Raises:
        ImportError: naming the tracker and the extra to install. Trackers that the extra lacks are left to transformers.
    """
    for name in report_to:
        if name in IN_THE_EXTRA and not any(map(_is_installed, _ALTERNATIVES.get(name, (name,)))):
            raise ImportError(
                f'report_to={name} needs the package {name}; install it with pip install "hf_elm[tracking]", or leave report_to '
                "out: metrics.jsonl has every log."
            )


def _is_installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module that was put in place of the package
        return False
