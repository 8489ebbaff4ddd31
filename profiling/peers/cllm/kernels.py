"""cllm's side of the kernel cases: for each, a call and the arrays that it writes."""

from peers import inputs, process

# Rows of logits in work at once: what the executor takes when a plan leaves it open, at V = 50257.
LOSS_ROWS = 256


def cases(threads: int, dtype: str = "float32") -> dict:
    """By name of the kernel, a function of the shape that returns the call and its results."""
    import numpy as np

    from cllm import _kernels as k
    from cllm.arrays import aligned_empty
    from cllm.layers.activation import Activation

    silu = Activation.codes["silu"]
    k.set_threads(threads)
    itemsize = np.dtype(dtype).itemsize

    def given(arrays: dict) -> dict:
        """The case's arrays; those of real numbers in `dtype`."""
        return {name: inputs.aligned(array.astype(dtype)) if array.dtype.kind == "f" else array
                for name, array in arrays.items()}

    def scratch(elements: int) -> np.ndarray:
        return inputs.aligned(np.zeros(max(1, elements), dtype))

    def like(array: np.ndarray) -> np.ndarray:
        return inputs.aligned(np.zeros_like(array))

    def linear(n, n_in, n_out):
        return given(inputs.product(n, n_in, n_out)), scratch(k.linear_workspace(n, n_in, n_out, threads, itemsize))

    def linear_backward_weight(n, n_in, n_out):
        a, space = linear(n, n_in, n_out)
        dweight = like(a["weight"])
        return (lambda: k.linear_backward_weight(a["x"], a["dy"], dweight=dweight, dbias=None, workspace=space),
                [dweight])

    def linear_forward(n, n_in, n_out):
        a, space = linear(n, n_in, n_out)
        y = like(a["dy"])
        return lambda: k.linear_forward(a["x"], a["weight"], a["bias"], y=y, workspace=space), [y]

    def linear_backward_input(n, n_in, n_out):
        a, space = linear(n, n_in, n_out)
        dx = like(a["x"])
        return lambda: k.linear_backward_input(a["dy"], a["weight"], dx=dx, workspace=space), [dx]

    def block_backward_weight(n, heads, head_dim):
        a = given(inputs.block_product(n, heads, head_dim))
        space = scratch(k.block_linear_workspace(n, 1, heads, head_dim, threads, itemsize))
        dweight = like(a["weight"])
        return (lambda: k.block_linear_backward_weight(a["x"], a["dy"], dweight=dweight, dbias=None, workspace=space),
                [dweight])

    def attention(batch, heads, time, head_dim):
        a = given(inputs.attention(batch, heads, time, head_dim))
        y, dqkv, lse = like(a["dy"]), like(a["qkv"]), np.zeros((batch, heads, time), dtype)
        space = scratch(k.attention_workspace(batch, time, heads, head_dim, threads, itemsize))

        def call():
            k.attention_forward(a["qkv"], batch, heads, y=y, lse=lse, workspace=space)
            k.attention_backward(a["dy"], a["qkv"], y, lse, batch, heads, None, dqkv=dqkv, workspace=space)

        return call, [y, dqkv]

    def window_attention(batch, heads, kv_heads, time, head_dim, window=None):
        a = given(inputs.grouped_attention(batch, heads, kv_heads, time, head_dim))
        y, dqkv, lse = like(a["dy"]), like(a["qkv"]), np.zeros((batch, heads, time), dtype)
        space = scratch(k.attention_workspace(batch, time, heads, head_dim, threads, itemsize, kv_heads=kv_heads,
                                              bounded=window is not None))
        first = None if window is None else np.maximum(np.arange(time, dtype=np.int32) - window + 1, 0).astype(np.int32)
        more = {"kv_heads": kv_heads, "first": first}

        def call():
            k.attention_forward(a["qkv"], batch, heads, **more, y=y, lse=lse, workspace=space)
            k.attention_backward(a["dy"], a["qkv"], y, lse, batch, heads, None, **more, dqkv=dqkv, workspace=space)

        return call, [y, dqkv]

    grouped_attention = window_attention

    def head(n, channels, vocabulary):
        a = given(inputs.head(n, channels, vocabulary))
        step = min(n, LOSS_ROWS)
        losses = np.zeros(n)
        dh, dembedding, scale = like(a["h"]), like(a["embedding"]), np.full(1, 1.0 / n)
        room = max(k.linear_workspace(step, vocabulary, channels, threads, itemsize),
                   k.linear_workspace(step, channels, vocabulary, threads, itemsize))

        def call():
            # Made in the call, as the other libraries do, so that its memory is measured in the same way.
            logits, space = aligned_empty((step, vocabulary), dtype), aligned_empty(room, dtype)
            for start in range(0, n, step):
                cut = slice(start, min(n, start + step))
                h, some, targets = a["h"][cut], logits[:cut.stop - cut.start], a["targets"][cut]
                k.linear_backward_input(h, a["embedding"], dx=some, workspace=space)
                k.cross_entropy_backward(targets, scale, logits=some, losses=losses[cut])
                k.linear_forward(some, a["embedding"], None, y=dh[cut], workspace=space)
                k.linear_backward_weight(some, h, dweight=dembedding, dbias=None, workspace=space)

        return call, [dh, dembedding]

    def layernorm_forward(n, channels):
        a = given(inputs.rows(n, channels))
        y, mean, rstd = like(a["x"]), np.zeros(n), np.zeros(n)
        return lambda: k.layernorm_forward(a["x"], a["weight"], a["bias"], 1e-5, y=y, mean=mean, rstd=rstd), [y]

    def layernorm_backward(n, channels):
        a = given(inputs.rows(n, channels))
        y, mean, rstd = like(a["x"]), np.zeros(n), np.zeros(n)
        k.layernorm_forward(a["x"], a["weight"], a["bias"], 1e-5, y=y, mean=mean, rstd=rstd)
        dx, dweight, dbias = like(y), like(a["weight"]), like(a["bias"])
        return (lambda: k.layernorm_backward(a["dy"], a["x"], mean, rstd, a["weight"], dx=dx, dweight=dweight,
                                             dbias=dbias), [dx, dweight])

    def rmsnorm_forward(n, channels):
        a = given(inputs.rows(n, channels))
        y, rstd = like(a["x"]), np.zeros((n, 1))
        return lambda: k.rmsnorm_forward(a["x"], a["weight"], 1e-5, y=y, rstd=rstd), [y]

    def rmsnorm(n, channels):
        a = given(inputs.rows(n, channels))
        y, dx, dweight, rstd = like(a["x"]), like(a["x"]), like(a["weight"]), np.zeros((n, 1))

        def call():
            dweight[:] = 0  # PyTorch's gradients are fresh in each call
            k.rmsnorm_forward(a["x"], a["weight"], 1e-5, y=y, rstd=rstd)
            k.rmsnorm_backward(a["dy"], a["x"], rstd, a["weight"], add=False, dx=dx, dweight=dweight)

        return call, [y, dx, dweight]

    def gated_silu_forward(n, width):
        a = given(inputs.gated(n, width))
        y = like(a["dy"])
        return lambda: k.gated_forward(a["x"], silu, y=y), [y]

    def gated_silu(n, width):
        a = given(inputs.gated(n, width))
        y, dx = like(a["dy"]), like(a["x"])

        def call():
            k.gated_forward(a["x"], silu, y=y)
            k.gated_backward(a["dy"], a["x"], silu, dx=dx)

        return call, [y, dx]

    def activation(kind):
        def forward(n, channels):
            a = given(inputs.rows(n, channels))
            y = like(a["x"])
            return lambda: k.activation_forward(a["x"], kind, y=y), [y]

        def backward(n, channels):
            a = given(inputs.rows(n, channels))
            dx = like(a["x"])
            return lambda: k.activation_backward(a["dy"], a["x"], kind, dx=dx), [dx]

        def pair(n, channels):
            a = given(inputs.rows(n, channels))
            y, dx = like(a["x"]), like(a["x"])

            def call():
                k.activation_forward(a["x"], kind, y=y)
                k.activation_backward(a["dy"], a["x"], kind, dx=dx)

            return call, [y, dx]

        return forward, backward, pair

    gelu_forward, gelu_backward, gelu = activation(0)
    relu_forward, relu_backward, relu = activation(1)
    tanh_forward, tanh_backward, tanh = activation(2)

    def residual(n, channels):
        a = given(inputs.rows(n, channels))
        y = like(a["x"])
        return lambda: k.residual_forward(a["x"], a["dy"], y=y), [y]

    def bound(elements: int, n_arrays: int = 1) -> dict:
        """Parameters and what belongs to them, each part a list of as many arrays."""
        made = [given(inputs.parameters(elements)) for _ in range(n_arrays)]
        return {name: k.ArrayList(one[name] for one in made) for name in made[0]}

    def update(a: dict, decay: np.ndarray) -> None:
        k.adamw_update(a["grad"], 3e-4, 0.9, 0.95, 1e-8, decay, False, 10, params=a["param"], m=a["m"], v=a["v"])

    def adamw(elements):
        a, decay = bound(elements), np.full(1, 0.1)
        return lambda: update(a, decay), list(a["param"].arrays)

    def optimizer_list(n_arrays, elements):
        a, decay, squares = bound(elements, n_arrays), np.full(n_arrays, 0.1), np.zeros(n_arrays)
        spare = k.ArrayList(map(like, a["grad"].arrays))  # zeroed in the gradients' stead, which every call needs

        def call():
            k.sum_of_squares(a["grad"], out=squares)
            k.scale_in_place(np.full(n_arrays, squares.sum() ** -0.5), x=a["grad"])
            update(a, decay)
            k.fill_zero(x=spare)

        return call, list(a["param"].arrays)

    def optimizer_step(elements):
        return optimizer_list(1, elements)

    def sum_of_squares(elements):
        grad, found = bound(elements)["grad"], np.zeros(1)
        return lambda: k.sum_of_squares(grad, out=found), [found]

    def scale(elements):
        grad, factor = bound(elements)["grad"], np.full(1, -1.0)
        return lambda: k.scale_in_place(factor, x=grad), list(grad.arrays)

    def zero(elements):
        grad = bound(elements)["grad"]
        return lambda: k.fill_zero(x=grad), list(grad.arrays)

    def bfloat16_compress(n, channels):
        x = inputs.rows(n, channels)["x"].reshape(-1)
        y = np.zeros(x.size, np.uint16)
        return lambda: k.compress_bfloat16(x, y=y), [y.view(np.int16)]

    def bfloat16_expand(n, channels):
        x = inputs.bfloat16(n, channels).reshape(-1)
        y = np.zeros(x.size, np.float32)
        return lambda: k.expand_bfloat16(x, y=y), [y]

    def packed(n, channels):
        return np.zeros(k.int8_bytes(n, channels), np.uint8)

    def int8_compress(n, channels):
        x, y = inputs.rows(n, channels)["x"], packed(n, channels)
        return lambda: k.compress_int8(x, y=y), [codes(y, n, channels)]

    def int8_stochastic(n, channels):
        x, y = inputs.rows(n, channels)["x"], packed(n, channels)
        key = np.array([0, 1, 2], np.uint64)
        return lambda: k.compress_int8_stochastic(x, key, 1 << 31, channels, y=y), [codes(y, n, channels)]

    def int8_expand(n, channels):
        x, y = packed(n, channels), np.zeros((n, channels), np.float32)
        k.compress_int8(inputs.rows(n, channels)["x"], y=x)
        return lambda: k.expand_int8(x, y=y), [y]

    def codes(y, n, channels):
        """What int8 keeps, without the scales before it."""
        return y[y.size - n * channels:].view(np.int8)

    return {name: function for name, function in locals().items()
            if callable(function) and name not in ("given", "scratch", "like", "linear", "activation", "bound", "update",
                                                   "packed", "codes", "aligned_empty", "Activation")}


if __name__ == "__main__":
    process.serve_kernels(cases)
