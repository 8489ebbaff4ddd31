# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=False, embedsignature=True, binding=True
"""Compiled kernels: the arithmetic of cllm, free of the GIL.

Contents, one family a file, in the order in which they build on each other: vector types, common checks, the number of
threads, random numbers, matrix products, attention, layer norm and RMS norm, activations, embeddings, losses, optimizers
over lists of arrays, compressed copies, calls in turn with the seconds of each, and places for buffers in one slab.

Contract. An element's bits depend on its inputs and on the length of its sum alone: not on the number of threads, on
where its row stands, on the address of a buffer, or on how the batch was cut. Parameters before the bare ``*`` are
read, those after it are written; accumulators (``+=`` in the margin) start from what the buffer holds and add rows in
order. No kernel allocates: a workspace comes from the caller. No kernel checks values, each checks every length.
"""
from cython cimport floating
from cython.parallel cimport prange, parallel, threadid
cimport cython

include "kernels/vector.pxi"
include "kernels/common.pxi"
include "kernels/threads.pxi"
include "kernels/wide.pxi"
include "kernels/exponential.pxi"
include "kernels/random.pxi"
include "kernels/gemm_tile.pxi"
include "kernels/gemm_blocks.pxi"
include "kernels/matmul.pxi"
include "kernels/block_matmul.pxi"
include "kernels/attention_lanes.pxi"
include "kernels/attention_layout.pxi"
include "kernels/attention_span.pxi"
include "kernels/attention_tiles.pxi"
include "kernels/attention_softmax.pxi"
include "kernels/attention_packing.pxi"
include "kernels/attention_heads.pxi"
include "kernels/attention_backward.pxi"
include "kernels/attention.pxi"
include "kernels/attention_checks.pxi"
include "kernels/crystal.pxi"
include "kernels/layernorm.pxi"
include "kernels/rmsnorm.pxi"
include "kernels/rmsnorm_backward.pxi"
include "kernels/normal.pxi"
include "kernels/activation.pxi"
include "kernels/gated.pxi"
include "kernels/residual.pxi"
include "kernels/softcap.pxi"
include "kernels/embedding.pxi"
include "kernels/loss.pxi"
include "kernels/squared_error.pxi"
include "kernels/array_list.pxi"
include "kernels/gradient_lists.pxi"
include "kernels/optimizer.pxi"
include "kernels/compress.pxi"
include "kernels/clock.pxi"
include "kernels/first_fit.pxi"
