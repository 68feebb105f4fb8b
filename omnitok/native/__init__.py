"""Kernels of our own for bfloat16 on CPUs that multiply matrix tiles (Intel AMX).

They are C++ that is compiled when it is first needed; see `build`. Everything they do, PyTorch does
too, elsewhere and where there is no compiler.
"""
