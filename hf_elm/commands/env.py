"""usage: hf-elm env [--json]

Versions, devices and platform, as a table or as JSON, for bug reports.
"""

import json
import sys

from ..environment import describe_environment


def run(arguments: list[str]) -> None:
    """Print the environment.

    Raises:
        ValueError: an argument other than ``--json``.
    """
    if set(arguments) - {"--json", "json=true"}:
        raise ValueError(f"env takes --json or nothing, got {' '.join(arguments)}.")
    environment = describe_environment()
    if arguments:
        sys.stdout.write(json.dumps(environment, indent=2) + "\n")
        return
    flat = {**{key: value for key, value in environment.items() if key != "packages"}, **environment["packages"]}
    sys.stdout.writelines(f"{key:<16}{value}\n" for key, value in flat.items())
