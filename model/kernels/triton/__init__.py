"""The kernels for a CUDA device, in Triton. Only :mod:`model.kernels.triton.launch` is for others.

Importing a module of this package needs triton, ``tables`` apart. Their contracts are those of
``model.kernels.reference``. Where a sequence has one token, its own kernels take it, whoever is beside it, and no
program's sums depend on other sequences: so neighbours change no bit.
"""
