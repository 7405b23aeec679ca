"""The GPU's inner loops: Triton kernels, the torch operations they replace, and the check that decides between them.

Only `selfcheck` imports the Triton modules, and only for a GPU: `ops` and `torch_ops` need no Triton.
"""
