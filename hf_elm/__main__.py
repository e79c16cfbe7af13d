"""``python -m hf_elm`` is ``hf-elm``; torchrun needs it so."""

import sys

from .command_line import main


if __name__ == "__main__":
    sys.exit(main())
