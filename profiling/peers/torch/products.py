"""PyTorch's side of the mixed-precision cases: the same products in float32 and in bfloat16."""

from peers import inputs, process


def cases(threads: int) -> dict:
    """By name, a function of the shape that returns the call and its results."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)

    def operands(n, n_in, n_out):
        a = inputs.product(n, n_in, n_out)
        return torch.from_numpy(a["x"]), torch.from_numpy(a["weight"])

    def float32(n, n_in, n_out):
        x, weight = operands(n, n_in, n_out)
        y = torch.zeros(n, n_out)
        return lambda: torch.mm(x, weight, out=y), [y]

    def bfloat16(n, n_in, n_out):
        x, weight = (one.bfloat16() for one in operands(n, n_in, n_out))
        y = torch.zeros(n, n_out, dtype=torch.bfloat16)
        return lambda: torch.mm(x, weight, out=y), [y]

    def rounded(n, n_in, n_out):
        """From float32 and back: both operands are rounded first, the product is widened after."""
        x, weight = operands(n, n_in, n_out)
        y = torch.zeros(n, n_out)
        return lambda: y.copy_(torch.mm(x.bfloat16(), weight.bfloat16())), [y]

    return {one.__name__: one for one in (float32, bfloat16, rounded)}


if __name__ == "__main__":
    process.serve_kernels(cases)
