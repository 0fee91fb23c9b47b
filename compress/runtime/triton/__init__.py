"""Kernels for GPUs, imported on use; torch's own operations are what they are held to.

products   a packed matrix times a few tokens
attention  tokens over their pages, where they lie
"""
