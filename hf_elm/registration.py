"""Registers every family with transformers' Auto classes, at once or as soon as they are imported.

transformers has no entry points for models, and importing it takes seconds, so ``import hf_elm`` only installs a hook:
when the outermost import of a transformers or hf_elm module has ended (never in the middle of one, where classes are
still missing), whatever Auto module has arrived meanwhile learns about the families. The hook then removes itself.
"""

import sys
import threading

from .families import FAMILIES, resolve


class _AfterImport:
    """A ``sys.meta_path`` finder that finds nothing itself and calls ``register`` when outermost imports end."""

    def __init__(self):
        self.state = threading.local()  # depth of nested imports; per thread, as imports are
        self.pending = {f"transformers.models.auto.{kind}_auto": kind for kind in ("configuration", "modeling")}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ("transformers", "hf_elm"):
            return None
        finders = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self.run(execute, module)
        return spec

    def run(self, execute, module):
        self.state.depth = getattr(self.state, "depth", 0) + 1
        try:
            execute(module)
        finally:
            self.state.depth -= 1
        if self.state.depth == 0:
            self.register()

    def register(self):
        """Register the families with each Auto module that is loaded and has not been told yet."""
        for name in [name for name in self.pending if name in sys.modules]:
            kind, auto = self.pending.pop(name, None), sys.modules[name]
            for model_type, family in FAMILIES.items():
                config = resolve(family.config)
                if kind == "configuration":
                    auto.AutoConfig.register(model_type, config, exist_ok=True)
                for path, auto_names in family.models.items() if kind == "modeling" else ():
                    for auto_name in auto_names:
                        getattr(auto, auto_name).register(config, resolve(path), exist_ok=True)
        if not self.pending and self in sys.meta_path:
            sys.meta_path.remove(self)


def install() -> None:
    """Register now with the Auto modules that are loaded, and later with those that are not yet."""
    hook = _AfterImport()
    sys.meta_path.insert(0, hook)
    hook.register()
