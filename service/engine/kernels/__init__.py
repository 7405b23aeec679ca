"""The GPU's inner loops: Triton kernels, the torch operations they replace, and the check that decides between them.

Triton is imported for a GPU only, when `selfcheck` asks for the `candidates`: `ops` and `torch_ops` do without it.
"""
