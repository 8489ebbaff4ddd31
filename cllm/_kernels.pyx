# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=False, embedsignature=True, binding=True
"""Compiled kernels: the arithmetic of cllm, free of the GIL.

Contents, one family a file, in the order in which they build on each other: vector types, common checks, the number of
threads, random numbers, bfloat16, matrix products, attention, layer norm and RMS norm, activations, embeddings,
losses, optimizers over lists of arrays, compressed copies, calls in turn, also with the seconds of each, and places
for buffers in one slab.

Contract. An element's bits depend on its inputs and on the length of its sum alone: not on the number of threads, on
where its row stands, on the address of a buffer, or on how the batch was cut. Parameters before the bare ``*`` are
read, those after it are written; accumulators (``+=`` in the margin) start from what the buffer holds and add rows in
order. No kernel allocates: a workspace comes from the caller. No kernel checks values, each checks every length.
"""
# The family, and which law each part keeps for the others:
#
#   registers   vector ........ the only place that knows a register's width; what is rounded once says `fma`
#               wide .......... sums along a row: 32 lanes of float64 whatever the register, folded in one order
#               exponential, normal, random ... functions of one element; random by a counter, so no state is kept
#               bfloat16 ...... arrays in upper halves of float32, for kernels that read or write either
#   calls       common ........ every length is checked, no value is        threads ... the number belongs to the caller
#
#   products    gemm_tile, stored, pairs, pair_packing, units -> gemm_packing, level_two, column_sums -> gemm_blocks, amx
#               -> matmul, block_matmul:
#               an element is one chain of fma over ascending k: tiles, blocks and cuts cannot be seen; operands may be
#               rounded to bfloat16 on their way in, and then be taken two at a time by an instruction (pairs); weights may be
#               read from the rows or quantised blocks of a file (stored)
#   attention   attention_lanes -> _layout, _span -> _tiles, _softmax, _packing -> _heads, _backward -> attention
#               chains as above; a softmax has the lanes of a line and grows its top every 192 keys     crystal: more terms
#   rows        layernorm, rmsnorm(_backward), activation, gated, residual, softcap, embedding, loss, squared_error,
#               picked_rows
#               a row is one piece of work; gradients of parameters add rows in order, threads share the columns
#   lists       array_list -> gradient_lists, optimizer, optimizer_8bit, adafactor
#               all parameters in one call, pieces cut by shape
#   plans       compress (narrow copies)   calls (methods in turn) -> clock (timed)   first_fit (places in a slab)
#
# What stands to the right of an arrow calls what stands to its left; a .pxi with a `def` is a door for Python.

from cython cimport floating
from cython.parallel cimport prange, parallel, threadid
cimport cython

include "kernels/vector.pxi"
include "kernels/common.pxi"
include "kernels/threads.pxi"
include "kernels/wide.pxi"
include "kernels/exponential.pxi"
include "kernels/random.pxi"
include "kernels/bfloat16.pxi"
include "kernels/gemm_tile.pxi"
include "kernels/stored.pxi"
include "kernels/units.pxi"
include "kernels/pairs.pxi"
include "kernels/pair_packing.pxi"
include "kernels/gemm_packing.pxi"
include "kernels/level_two.pxi"
include "kernels/column_sums.pxi"
include "kernels/gemm_blocks.pxi"
include "kernels/amx.pxi"
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
include "kernels/picked_rows.pxi"
include "kernels/squared_error.pxi"
include "kernels/array_list.pxi"
include "kernels/gradient_lists.pxi"
include "kernels/optimizer.pxi"
include "kernels/optimizer_8bit.pxi"
include "kernels/adafactor.pxi"
include "kernels/compress.pxi"
include "kernels/calls.pxi"
include "kernels/clock.pxi"
include "kernels/first_fit.pxi"
