"""cllm's side of the mixed-precision cases: products in float32, in bfloat16, and of weights that are kept as bfloat16."""

from peers import inputs, process


def cases(threads: int) -> dict:
    """By name, a function of the shape that returns the call and its results."""
    import numpy as np

    from cllm import _kernels as k

    k.set_threads(threads)

    def product(n, n_in, n_out):
        a = inputs.product(n, n_in, n_out)
        y, space = np.zeros((n, n_out), np.float32), np.zeros(k.linear_workspace(n, n_in, n_out, threads, 4), np.float32)
        return lambda: k.linear_forward(a["x"], a["weight"], None, y=y, workspace=space), [y]

    def product_in_bfloat16(n, n_in, n_out):
        """x is bfloat16, the weight float32, as in training: it is rounded while it is packed."""
        a = inputs.product(n, n_in, n_out)
        x = np.zeros((n, n_in), np.uint16)
        k.copy_values(a["x"], y=x)
        y, space = np.zeros((n, n_out), np.float32), np.zeros(k.linear_workspace(n, n_in, n_out, threads, 4), np.float32)
        return lambda: k.linear_forward(x, a["weight"], None, 1, y=y, workspace=space), [y]

    def product_of_copy(n, n_in, n_out):
        """The copy is widened in a pass of its own before the product, which bounds what widening while the operand is
        packed would cost."""
        a = inputs.product(n, n_in, n_out)
        y, space = np.zeros((n, n_out), np.float32), np.zeros(k.linear_workspace(n, n_in, n_out, threads, 4), np.float32)
        copy, wide = np.zeros(a["weight"].size, np.uint16), np.zeros_like(a["weight"])
        k.compress_bfloat16(a["weight"].reshape(-1), y=copy)

        def call():
            k.expand_bfloat16(copy, y=wide.reshape(-1))
            k.linear_forward(a["x"], wide, None, y=y, workspace=space)

        return call, [y]

    def round_weights(elements):
        x = inputs.normal(inputs.generator(), elements)
        y = np.zeros(elements, np.uint16)
        return lambda: k.compress_bfloat16(x, y=y), [y.view(np.int16)]

    return {one.__name__: one for one in (product, product_in_bfloat16, product_of_copy, round_weights)}


if __name__ == "__main__":
    process.serve_kernels(cases)
