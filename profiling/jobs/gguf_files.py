"""GGUF files of drawn weights, in any kind of block; the library `gguf` (extra ``hf``) quantises and writes."""

from pathlib import Path

import numpy as np

STD = 0.02  # of drawn matrices


def write_drawn(path: Path, architecture, kind: str, seed: int = 0) -> int:
    """A LLaMA's file as llama.cpp writes it, matrices of normal numbers in blocks of `kind`, norms at one.

    Parameters
    ----------
    path : Path
    architecture : Llama
    kind : str
        By GGML's name: F16, BF16, Q8_0, Q4_0, Q4_1.
    seed : int

    Returns
    -------
    int
        Bytes of all tensors.
    """
    import gguf

    code = gguf.GGMLQuantizationType[kind]
    writer, rng, nbytes = gguf.GGUFWriter(path, "llama"), np.random.default_rng(seed), 0
    for add, value in ((writer.add_block_count, architecture.n_layers), (writer.add_context_length, architecture.max_seq_len),
                       (writer.add_embedding_length, architecture.d_model), (writer.add_head_count, architecture.n_heads),
                       (writer.add_feed_forward_length, architecture.d_ff),
                       (writer.add_head_count_kv, architecture.n_kv_heads), (writer.add_key_length, architecture.head_dim),
                       (writer.add_rope_freq_base, architecture.rope.theta),
                       (writer.add_layer_norm_rms_eps, architecture.norm_eps)):
        add(value)
    for name, part in architecture.tensors(None).items():
        shape = part.shape(architecture.program.parameters[part.parameter].shape)
        if len(shape) == 1:
            values, raw = np.ones(shape, np.float32), None
        else:
            drawn = rng.standard_normal(shape, np.float32)
            drawn *= STD
            values, raw = gguf.quants.quantize(drawn, code), code
        writer.add_tensor(_named(name), values, raw_dtype=raw)
        nbytes += values.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return nbytes


def _named(name: str) -> str:
    """The name in such a file of a tensor that transformers' files call `name`."""
    from cllm.models.gguf import IN_BLOCK, NAMES

    stem, _, ending = name.rpartition(".")
    for ours, theirs in NAMES.items():
        if stem == theirs:
            return f"{ours}.{ending}"
    block, _, within = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{block}.{next(ours for ours, theirs in IN_BLOCK.items() if theirs == within)}.{ending}"
