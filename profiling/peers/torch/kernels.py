"""PyTorch's side of the kernel cases: its own fused calls, autograd where it has no direct backward."""

from peers import inputs, process


def cases(threads: int) -> dict:
    """By name of the kernel, a function of the shape that returns the call and its results."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)

    def tensors(arrays: dict) -> dict:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def linear_backward_weight(n, n_in, n_out):
        a = tensors(inputs.product(n, n_in, n_out))
        dweight = torch.zeros(n_in, n_out)
        return lambda: dweight.addmm_(a["x"].T, a["dy"]), [dweight]

    def linear_forward(n, n_in, n_out):
        a = tensors(inputs.product(n, n_in, n_out))
        y = torch.zeros(n, n_out)
        return lambda: torch.addmm(a["bias"], a["x"], a["weight"], out=y), [y]

    def linear_backward_input(n, n_in, n_out):
        a = tensors(inputs.product(n, n_in, n_out))
        dx = torch.zeros(n, n_in)
        return lambda: torch.mm(a["dy"], a["weight"].T, out=dx), [dx]

    def block_backward_weight(n, heads, head_dim):
        a = tensors(inputs.block_product(n, heads, head_dim))
        x, dy = (a[name].view(n, heads, head_dim) for name in ("x", "dy"))
        dweight = torch.zeros(heads, head_dim, head_dim)
        return lambda: dweight.baddbmm_(dy.permute(1, 2, 0), x.permute(1, 0, 2)), [dweight]

    def with_grad(call, leaves: list, results: list):
        """A call that runs under autograd into fresh gradients; `results` is filled with what it left."""
        def run():
            for leaf in leaves:
                leaf.grad = None
            results.clear()  # else the gradients of the call before would count as this one's memory
            with torch.enable_grad():
                outputs = call()
            results[:] = [*outputs, *(leaf.grad for leaf in leaves)]

        return run, results

    def attention(batch, heads, time, head_dim):
        arrays = inputs.attention(batch, heads, time, head_dim)
        q, k, v = (torch.from_numpy(one).requires_grad_() for one in inputs.heads_of(arrays["qkv"], batch, heads))
        dy = torch.from_numpy(inputs.heads_of(arrays["dy"], batch, heads)[0])

        def call():
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            y.backward(dy)
            return [y.detach()]

        return with_grad(call, [q, k, v], [])

    def grouped_attention(batch, heads, kv_heads, time, head_dim, window=None):
        arrays = inputs.grouped_attention(batch, heads, kv_heads, time, head_dim)
        qkv = torch.from_numpy(arrays["qkv"]).view(batch, time, -1, head_dim).transpose(1, 2)
        q, k, v = (part.contiguous().requires_grad_() for part in qkv.split([heads, kv_heads, kv_heads], dim=1))
        dy = torch.from_numpy(arrays["dy"]).view(batch, time, heads, head_dim).transpose(1, 2).contiguous()
        ahead = torch.arange(time)[:, None] - torch.arange(time)
        how = {"is_causal": True} if window is None else {"attn_mask": (ahead >= 0) & (ahead < window)}

        def call():
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **how)
            y.backward(dy)
            return [y.detach()]

        return with_grad(call, [q, k, v], [])

    window_attention = grouped_attention

    def head(n, channels, vocabulary):
        a = tensors(inputs.head(n, channels, vocabulary))
        h, embedding, targets = a["h"].requires_grad_(), a["embedding"].requires_grad_(), a["targets"].long()

        def call():
            F.cross_entropy(F.linear(h, embedding), targets).backward()
            return []

        return with_grad(call, [h, embedding], [])

    def layernorm_forward(n, channels):
        a = tensors(inputs.rows(n, channels))
        results = [None]

        def call():
            results[0] = F.layer_norm(a["x"], (channels,), a["weight"], a["bias"], 1e-5)

        return call, results

    def layernorm_backward(n, channels):
        a = tensors(inputs.rows(n, channels))
        _, mean, rstd = torch.native_layer_norm(a["x"], (channels,), a["weight"], a["bias"], 1e-5)
        results = [None, None]

        def call():
            dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
                a["dy"], a["x"], (channels,), mean, rstd, a["weight"], a["bias"], [True, True, True])
            results[:] = [dx, dweight]

        return call, results

    def compiled_forward(function, arrays: dict, *names):
        """A function compiled by PyTorch of some of a case's arrays; its result is a fresh array in each call."""
        a, call, results = tensors(arrays), torch.compile(function, dynamic=False), [None]

        def run():
            results[0] = call(*(a[name] for name in names))

        return run, results

    def compiled_pair(function, arrays: dict, *leaves):
        """Forward and backward of a compiled function under autograd."""
        a, call = tensors(arrays), torch.compile(function, dynamic=False)
        read = [a[name].requires_grad_() for name in leaves]

        def run():
            y = call(*read)
            y.backward(a["dy"])
            return [y.detach()]

        return with_grad(run, read, [])

    def normalised(x, weight):
        return F.rms_norm(x, (x.shape[-1],), weight, 1e-5)

    def gated(x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    def rmsnorm_forward(n, channels):
        return compiled_forward(normalised, inputs.rows(n, channels), "x", "weight")

    def rmsnorm(n, channels):
        return compiled_pair(normalised, inputs.rows(n, channels), "x", "weight")

    def gated_silu_forward(n, width):
        return compiled_forward(gated, inputs.gated(n, width), "x")

    def gated_silu(n, width):
        return compiled_pair(gated, inputs.gated(n, width), "x")

    def elementwise(function, arrays, **more):
        """A function of some of a row case's arrays, written where the call before wrote."""
        def case(n, channels):
            a = tensors(inputs.rows(n, channels))
            y = torch.zeros(n, channels)
            return lambda: function(*(a[name] for name in arrays), out=y, **more), [y]

        return case

    def gelu_backward_into(dy, x, out):
        torch.ops.aten.gelu_backward(dy, x, approximate="tanh", grad_input=out)

    def relu_backward_into(dy, x, out):
        torch.ops.aten.threshold_backward(dy, x, 0.0, grad_input=out)

    gelu_forward = elementwise(torch.ops.aten.gelu, ("x",), approximate="tanh")
    gelu_backward = elementwise(gelu_backward_into, ("dy", "x"))
    relu_forward = elementwise(torch.ops.aten.relu, ("x",))
    relu_backward = elementwise(relu_backward_into, ("dy", "x"))
    tanh_forward = elementwise(torch.tanh, ("x",))
    residual = elementwise(torch.add, ("x", "dy"))

    def tanh_backward(n, channels):
        a = tensors(inputs.rows(n, channels))
        y, dx = torch.tanh(a["x"]), torch.zeros(n, channels)  # its derivative reads the output
        return lambda: torch.ops.aten.tanh_backward(a["dy"], y, grad_input=dx), [dx]

    def activation_pair(function):
        """Forward and backward under autograd, the way a model runs them."""
        def case(n, channels):
            a = tensors(inputs.rows(n, channels))
            x = a["x"].requires_grad_()

            def call():
                y = function(x)
                y.backward(a["dy"])
                return [y.detach()]

            return with_grad(call, [x], [])

        return case

    gelu = activation_pair(lambda x: F.gelu(x, approximate="tanh"))
    relu = activation_pair(F.relu)
    tanh = activation_pair(torch.tanh)

    def adamw(elements):
        a = tensors(inputs.parameters(elements))
        step = torch.tensor(9.0)  # counted up before it is used

        def call():
            step.fill_(9.0)
            torch._fused_adamw_([a["param"]], [a["grad"]], [a["m"]], [a["v"]], [], [step], lr=3e-4, beta1=0.9,
                                beta2=0.95, weight_decay=0.1, eps=1e-8, amsgrad=False, maximize=False)

        return call, [a["param"]]

    def optimizer_list(n_arrays, elements):
        made = [tensors(inputs.parameters(elements)) for _ in range(n_arrays)]
        params, spare = [torch.nn.Parameter(a["param"]) for a in made], [torch.zeros(elements) for _ in made]
        for param, a in zip(params, made, strict=True):
            param.grad = a["grad"]
        grads, m, v = ([a[name] for a in made] for name in ("grad", "m", "v"))
        steps, nine = ([torch.tensor(9.0) for _ in made] for _ in range(2))

        def call():
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            torch._foreach_copy_(steps, nine)  # counted up before they are used
            torch._fused_adamw_(params, grads, m, v, [], steps, lr=3e-4, beta1=0.9, beta2=0.95, weight_decay=0.1,
                                eps=1e-8, amsgrad=False, maximize=False)
            torch._foreach_zero_(spare)

        return call, [a["param"] for a in made]

    def optimizer_step(elements):
        return optimizer_list(1, elements)

    def sum_of_squares(elements):
        grad, found = tensors(inputs.parameters(elements))["grad"], torch.zeros(1, dtype=torch.float64)

        def call():
            found[0] = torch.linalg.vector_norm(grad, dtype=torch.float64) ** 2

        return call, [found]

    def scale(elements):
        grad = tensors(inputs.parameters(elements))["grad"]
        return lambda: grad.mul_(-1.0), [grad]

    def zero(elements):
        grad = tensors(inputs.parameters(elements))["grad"]
        return lambda: grad.zero_(), [grad]

    def bfloat16_compress(n, channels):
        x = tensors(inputs.rows(n, channels))["x"]
        y = torch.zeros(n, channels, dtype=torch.bfloat16)
        return lambda: y.copy_(x), [y.view(torch.int16)]

    def bfloat16_expand(n, channels):
        x = torch.from_numpy(inputs.bfloat16(n, channels).view("int16")).view(torch.bfloat16)
        y = torch.zeros(n, channels)
        return lambda: y.copy_(x), [y]

    def groups(n, channels):
        width = min(channels, 128)
        return tensors(inputs.rows(n, channels))["x"].view(n, channels // width, width)

    def int8_compress(n, channels):
        x = groups(n, channels)
        y = torch.zeros(x.shape, dtype=torch.int8)

        def call():
            largest = x.abs().amax(2, keepdim=True)
            y.copy_((x * (127 / largest)).round_())
            return largest / 127

        return call, [y]

    def int8_stochastic(n, channels):
        x = groups(n, channels)
        y = torch.zeros(x.shape, dtype=torch.int8)

        def call():
            largest = x.abs().amax(2, keepdim=True)
            y.copy_((x * (127 / largest)).add_(torch.rand(x.shape)).floor_().clamp_(max=127))
            return largest / 127

        return call, [y]

    def int8_expand(n, channels):
        x = groups(n, channels)
        scale, y = x.abs().amax(2, keepdim=True) / 127, torch.zeros(x.shape)
        codes = (x * (127 / x.abs().amax(2, keepdim=True))).round_().to(torch.int8)
        return lambda: torch.mul(codes, scale, out=y), [y]

    helpers = ("tensors", "with_grad", "elementwise", "gelu_backward_into", "relu_backward_into", "activation_pair", "groups",
               "compiled_forward", "compiled_pair", "normalised", "gated", "torch", "F")
    return {name: function for name, function in locals().items()
            if callable(function) and name not in helpers}


if __name__ == "__main__":
    process.serve_kernels(cases)
