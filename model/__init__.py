"""Token ids in, token ids out: the hybrid language model, its memory and its engine.

One glossary of shapes serves every docstring in this package:

====== ==================================================================
letter meaning
====== ==================================================================
S      sequences in the step
T      tokens in the step, all sequences flattened one after another
V      vocabulary size
L      layers
D      model width (residual stream)
I      inner width of a Mamba mixer, ``expand * D``
N      state size of a Mamba mixer per inner channel
K      width of the causal convolution
R      rank of the time-step projection
H      query heads of an attention layer
G      key/value heads of an attention layer
E      width of one head
P      tokens in one key/value block (64)
====== ==================================================================

A tensor that crosses a function border has its shape stated in these letters,
and its dtype where that is not the model's. Names ending in ``_bytes`` are
bytes, in ``_seconds`` seconds; ``num_*`` are counts.
"""
