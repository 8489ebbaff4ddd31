"""Bits of a step are the same on every processor that rounds a product with its sum, and written down here.

Parameters come from whole numbers alone, so nothing but the kernels can change a digest. If a kernel is meant to compute
other bits, the digests change once, with the commit that says why.
"""

import hashlib

import numpy as np
import pytest

import cllm
from cllm import dispatch
from cllm.models.llama import Llama

SMALL = dict(vocab_size=67, n_layers=2, d_model=40, n_heads=4, d_ff=56, max_seq_len=200)
FAMILIES = {
    "gpt": lambda: cllm.ModelConfig(**SMALL, dropout=0.1),
    "gpt, untied, tanh": lambda: cllm.ModelConfig(**SMALL, tied=False, activation="tanh", qkv="lattice"),
    "crystalline": lambda: cllm.ModelConfig(**SMALL, attention="crystalline", positions="prime"),
    "llama": lambda: Llama(**SMALL, n_kv_heads=2),
}
DIGESTS = {
    ("gpt", "float32"): "2c4d9d82740fd54a",
    ("gpt", "float64"): "c314c419143143ab",
    ("gpt", "bfloat16"): "f54dc08809131888",
    ("gpt, untied, tanh", "float32"): "bf40f2f50e207bc9",
    ("gpt, untied, tanh", "float64"): "97f30baf084e30fa",
    ("gpt, untied, tanh", "bfloat16"): "16f4b2c26d5ee8e0",
    ("crystalline", "float32"): "b56a5093468f8fa1",
    ("crystalline", "float64"): "208168a157e2547e",
    ("crystalline", "bfloat16"): "7965947107ba7142",
    ("llama", "float32"): "17e9251fdff44369",
    ("llama", "float64"): "e423c41bbe950a6c",
    ("llama", "bfloat16"): "bb3f3e9f2470253f",
}
PACKED = {
    ("gpt", "float32"): "874d660841f7e4d2",
    ("gpt", "float64"): "b91a723b5b3489d7",
    ("llama", "float32"): "a9307f6c9ba8c000",
    ("llama", "float64"): "83c289fddee89413",
}

pytestmark = pytest.mark.skipif(not dispatch.choice().level.fuses,
                                reason="this build rounds a product before its sum")


def whole_numbers(n, seed):
    """n numbers from 0 to 65535 by Marsaglia's xorshift."""
    state, out = seed + 0x9E3779B9, []
    for _ in range(n):
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        out.append(state >> 16)
    return np.array(out)


def digest_of(architecture, dtype, batch, seq_len, threads, packed=False):
    """Of losses and gradients of three clipped AdamW steps, and of the weights after them; packed rows hold a document of 61
    places, one of 97 and one of the rest."""
    place = np.arange(seq_len)
    fed = {"positions": np.tile(place - np.array([0, 61, 158])[np.searchsorted([61, 158], place, "right")], (batch, 1))}
    compute, dtype = (dtype, "float32") if dtype == "bfloat16" else ("float32", dtype)
    model = cllm.Model(architecture, seed=None, dtype=dtype, compute=compute)
    for index, parameter in enumerate(model.parameters.values()):
        parameter[...] = ((whole_numbers(parameter.size, index) - 32768) / 2.0 ** 18).reshape(parameter.shape)
        if parameter.ndim == 1:
            parameter += 1
    executor = cllm.Executor(model, batch, seq_len, num_threads=threads, packed=packed)
    optimizer, digest = cllm.AdamW(model, lr=1e-3), hashlib.sha256()
    for step in range(3):
        tokens, targets = whole_numbers(2 * batch * seq_len, 77 + step).reshape(2, batch, seq_len) % architecture.vocab_size
        model.zero_grad()
        digest.update(np.float64(executor.loss_and_grad(tokens, targets, **fed if packed else {})).tobytes())
        for gradient in model.gradients.values():
            digest.update(gradient.tobytes())
        cllm.clip_grad_norm(model, 1.0)
        optimizer.step()
    for parameter in model.parameters.values():
        digest.update(parameter.tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_are_those_that_are_written_down(family, dtype):
    """T = 200 crosses the tiles of attention of every processor, and the keys after which a row's largest score may grow."""
    assert digest_of(FAMILIES[family](), dtype, 3, 200, 2) == DIGESTS[family, dtype]


@pytest.mark.parametrize("family, dtype", PACKED)
def test_bits_of_packed_rows_are_those_that_are_written_down(family, dtype):
    """Documents begin and end inside of tiles, and one goes over the keys after which a row's largest score may grow."""
    assert digest_of(FAMILIES[family](), dtype, 3, 200, 2, packed=True) == PACKED[family, dtype]
