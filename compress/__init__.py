"""compress: an offline optimizer for large language models.

recipe → teacher → calibrate → stages → evaluate → report → artifact → verify

import compress

recipe = compress.load("quickstart", calibration={"samples": 64})
outcome = compress.apply(recipe, out="small")
side, divergence = compress.evaluate(outcome)
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.api import Evaluation, apply, evaluate, load
    from compress.pipeline import Outcome
    from compress.recipe.schema import Recipe

__version__ = "0.1.0"
__all__ = ["Evaluation", "Outcome", "Recipe", "__version__", "apply", "evaluate", "load"]

_HOMES = {
    "apply": "compress.api",
    "evaluate": "compress.api",
    "load": "compress.api",
    "Evaluation": "compress.api",
    "Outcome": "compress.pipeline",
    "Recipe": "compress.recipe.schema",
}


def __getattr__(name: str) -> Any:
    """Import what is exported on its first use: `import compress` alone starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'compress' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


class _Face(ModuleType):
    """The package as users see it: `compress.evaluate` is what it exports, not the room so named.

    Python binds a subpackage in its parent once anything of it is imported; that would hide the
    function from then on. `import compress.evaluate.text` and `from compress.evaluate import text`
    find the room all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
