"""Evaluation tasks over the interpreter's own library, which need no network: the harness reads the YAML files beside this."""
