"""usage: hf-elm adapt [RECIPE.yaml] model.base=PATH_OR_ID [key=value ...] [--key value ...]

Turn an existing causal LM into an energy-based one. Without a recipe the LM is frozen and a low-rank energy adapter is
trained (monarc_adapt_frozen); monarc_adapt_joint trains both. All else is as in `hf-elm train`.

  hf-elm adapt model.base=my_lm/ data.corpus=my_texts/
  hf-elm adapt monarc_adapt_joint model.base=HuggingFaceTB/SmolLM2-135M data.sequence_length=512
  hf-elm adapt monarc_adapt_joint model.base=my_lm/ peft.r=8
"""

from ..families import find_family
from ..process_launch import split_launch
from .train import named_family, resolve_settings, schema, start


__all__ = ["run", "schema"]


def run(arguments: list[str]) -> None:
    """Resolve the settings, claim the folder, train.

    Raises:
        ValueError: no model.base, or a family that cannot adapt.
    """
    request, arguments = split_launch(arguments)
    family = named_family(arguments)
    recipe = find_family(family).adapt_recipe
    if recipe is None:
        raise ValueError(f'family "{family}" cannot be put around an existing LM; use `hf-elm train`.')
    settings = resolve_settings(arguments, "adapt", default_recipe=recipe)
    if not settings.get("model", {}).get("base"):
        raise ValueError("adapt needs the LM to start from: model.base=<folder or Hub id of a causal LM>.")
    start(request, "adapt", arguments, settings)
