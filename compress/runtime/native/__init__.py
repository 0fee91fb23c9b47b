"""The decoding step as compiled code: every thread walks the whole model, meeting at barriers.

lanes      sixteen outputs at once, written as LLVM vectors
products   a packed matrix times a few tokens      expand   … as bfloat16, for many
attention  over pages, where they lie              vectors  norm, exponential, rotation
step       all of it in order                      team     the threads that walk it
decoder    a model laid out for it
"""

from compress.runtime.native.caching import cached

with cached():
    from compress.runtime.native import attention, expand, products, step, vectors

__all__ = ["attention", "expand", "products", "step", "vectors"]
