"""One module per command: its docstring is the help, ``schema()`` its keys, ``run(arguments)`` does it."""
