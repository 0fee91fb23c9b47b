"""compress: an offline optimizer for large language models.

recipe → teacher → calibrate → stages → evaluate → report → artifact → verify

import compress

recipe = compress.load("quickstart", ["calibration.samples=64"])
outcome = compress.apply(recipe, out=Path("small"))
side, divergence = compress.evaluate("small")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.pipeline import apply, evaluate
    from compress.recipe.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "apply", "evaluate", "load"]

_HOMES = {
    "apply": "compress.pipeline",
    "evaluate": "compress.pipeline",
    "load": "compress.recipe.load",
}


def __getattr__(name: str) -> Any:
    """Import what is exported on its first use: `import compress` alone starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'compress' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
