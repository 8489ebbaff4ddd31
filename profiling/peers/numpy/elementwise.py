"""NumPy's side of the kernels that work row by row or element by element; each as in `kernels.py`."""

import numpy as np

from peers import inputs

# Of the tanh approximation of GELU, as in docs/model.md.
ROOT = np.float32((2 / np.pi) ** 0.5)
CUBE = np.float32(0.044715)


def _normalised(x):
    mean = x.mean(axis=1, keepdims=True)
    centred = x - mean
    rstd = 1 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + np.float32(1e-5))
    return centred, rstd


def layernorm_forward(n, channels):
    a = inputs.rows(n, channels)
    y = np.zeros_like(a["x"])

    def call():
        centred, rstd = _normalised(a["x"])
        centred *= rstd
        np.multiply(centred, a["weight"], out=y)
        np.add(y, a["bias"], out=y)

    return call, [y]


def layernorm_backward(n, channels):
    a = inputs.rows(n, channels)
    centred, rstd = _normalised(a["x"])
    mean = a["x"].mean(axis=1, keepdims=True)
    dx = np.zeros_like(a["x"])
    dweight, dbias = np.zeros_like(a["weight"]), np.zeros_like(a["bias"])

    def call():
        nonlocal dx, dweight, dbias
        xhat = (a["x"] - mean) * rstd
        dweight += (a["dy"] * xhat).sum(axis=0)
        dbias += a["dy"].sum(axis=0)
        g = a["dy"] * a["weight"]
        dx += rstd * (g - g.mean(axis=1, keepdims=True) - xhat * (g * xhat).mean(axis=1, keepdims=True))

    return call, [dx, dweight]


def rmsnorm_forward(n, channels):
    a = inputs.rows(n, channels)
    y = np.zeros_like(a["x"])

    def call():
        np.multiply(a["x"], _rstd(a["x"]), out=y)
        np.multiply(y, a["weight"], out=y)

    return call, [y]


def _rstd(x):
    return 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(1e-5))


def rmsnorm(n, channels):
    a = inputs.rows(n, channels)
    y, dx, dweight = np.zeros_like(a["x"]), np.zeros_like(a["x"]), np.zeros_like(a["weight"])

    def call():
        rstd = _rstd(a["x"])
        xhat = a["x"] * rstd
        np.multiply(xhat, a["weight"], out=y)
        np.sum(a["dy"] * xhat, axis=0, out=dweight)
        g = a["dy"] * a["weight"]
        np.multiply(g - xhat * (g * xhat).mean(axis=1, keepdims=True), rstd, out=dx)

    return call, [y, dx, dweight]


def gated_silu_forward(n, width):
    gate, up = np.split(inputs.gated(n, width)["x"], 2, axis=1)
    y = np.zeros((n, width), np.float32)

    def call():
        np.divide(gate, 1 + np.exp(-gate), out=y)
        np.multiply(y, up, out=y)

    return call, [y]


def gated_silu(n, width):
    a = inputs.gated(n, width)
    gate, up = np.split(a["x"], 2, axis=1)
    y, dx = np.zeros_like(a["dy"]), np.zeros_like(a["x"])

    def call():
        share = 1 / (1 + np.exp(-gate))
        value = gate * share
        np.multiply(value, up, out=y)
        np.multiply(a["dy"], value, out=dx[:, width:])
        slope = share * (1 + gate * (1 - share))
        np.multiply(a["dy"] * up, slope, out=dx[:, :width])

    return call, [y, dx]


def gelu_forward(n, channels):
    x = inputs.rows(n, channels)["x"]
    y = np.zeros_like(x)

    def call():
        t = x * x
        t *= CUBE
        t += 1
        t *= x
        t *= ROOT
        np.tanh(t, out=t)
        t += 1
        t *= x
        np.multiply(t, np.float32(0.5), out=y)

    return call, [y]


def gelu_backward(n, channels):
    a = inputs.rows(n, channels)
    x, dx = a["x"], np.zeros_like(a["x"])

    def call():
        square = x * x
        t = np.tanh(ROOT * x * (1 + CUBE * square))
        slope = ROOT * (1 + 3 * CUBE * square)
        np.multiply(a["dy"], np.float32(0.5) * (1 + t) + np.float32(0.5) * x * (1 - t * t) * slope, out=dx)

    return call, [dx]


def relu_forward(n, channels):
    x = inputs.rows(n, channels)["x"]
    y = np.zeros_like(x)
    return lambda: np.maximum(x, 0, out=y), [y]


def relu_backward(n, channels):
    a = inputs.rows(n, channels)
    dx = np.zeros_like(a["x"])
    return lambda: np.multiply(a["dy"], a["x"] > 0, out=dx), [dx]


def tanh_forward(n, channels):
    x = inputs.rows(n, channels)["x"]
    y = np.zeros_like(x)
    return lambda: np.tanh(x, out=y), [y]


def tanh_backward(n, channels):
    a = inputs.rows(n, channels)
    dx = np.zeros_like(a["x"])

    def call():
        np.tanh(a["x"], out=dx)
        np.multiply(dx, dx, out=dx)
        np.subtract(1, dx, out=dx)
        np.multiply(dx, a["dy"], out=dx)

    return call, [dx]


def _both(forward, backward):
    def case(*shape):
        calls, results = zip(forward(*shape), backward(*shape), strict=True)
        return lambda: [call() for call in calls], [array for one in results for array in one]

    return case


def residual(n, channels):
    a = inputs.rows(n, channels)
    y = np.zeros_like(a["x"])
    return lambda: np.add(a["x"], a["dy"], out=y), [y]


def _update(a, step=10):
    param, grad, m, v = a["param"], a["grad"], a["m"], a["v"]
    rate, beta1, beta2, eps, decay = 3e-4, 0.9, 0.95, 1e-8, 0.1
    np.multiply(m, np.float32(beta1), out=m)
    np.add(m, np.float32(1 - beta1) * grad, out=m)
    np.multiply(v, np.float32(beta2), out=v)
    np.add(v, np.float32(1 - beta2) * grad * grad, out=v)
    denominator = np.sqrt(v / np.float32(1 - beta2 ** step))
    denominator += np.float32(eps)
    np.multiply(param, np.float32(1 - rate * decay), out=param)
    np.subtract(param, np.float32(rate / (1 - beta1 ** step)) * m / denominator, out=param)


def adamw(elements):
    a = inputs.parameters(elements)
    return lambda: _update(a), [a["param"]]


def optimizer_list(n_arrays, elements):
    made = [inputs.parameters(elements) for _ in range(n_arrays)]
    spare = [np.zeros_like(a["grad"]) for a in made]

    def call():
        factor = np.float32(sum(np.dot(a["grad"], a["grad"]) for a in made) ** -0.5)
        for a, zeroed in zip(made, spare, strict=True):
            a["grad"] *= factor
            _update(a)
            zeroed.fill(0)

    return call, [a["param"] for a in made]


def optimizer_step(elements):
    return optimizer_list(1, elements)


def sum_of_squares(elements):
    grad, found = inputs.parameters(elements)["grad"], np.zeros(1)

    def call():
        found[0] = np.dot(grad, grad)

    return call, [found]


def scale(elements):
    grad = inputs.parameters(elements)["grad"]
    return lambda: np.multiply(grad, np.float32(-1), out=grad), [grad]


def zero(elements):
    grad = inputs.parameters(elements)["grad"]
    return lambda: grad.fill(0), [grad]


def bfloat16_compress(n, channels):
    x = inputs.rows(n, channels)["x"].view(np.uint32)
    y = np.zeros(x.shape, np.uint16)

    def call():
        odd = x >> np.uint32(16)
        odd &= np.uint32(1)
        odd += np.uint32(0x7FFF)
        odd += x
        np.right_shift(odd, np.uint32(16), out=y, casting="unsafe")

    return call, [y.view(np.int16)]


def bfloat16_expand(n, channels):
    x = inputs.bfloat16(n, channels)
    y = np.zeros(x.shape, np.float32)
    return lambda: np.left_shift(x, np.uint32(16), out=y.view(np.uint32), dtype=np.uint32), [y]


def _groups(n, channels):
    width = min(channels, 128)
    return inputs.rows(n, channels)["x"].reshape(n, channels // width, width)


def int8_compress(n, channels):
    parts = _groups(n, channels)
    y, scale = np.zeros(parts.shape, np.int8), np.zeros(parts.shape[:2], np.float32)

    def call():
        largest = np.abs(parts).max(axis=2)
        np.divide(largest, np.float32(127), out=scale)
        scaled = parts * (np.float32(127) / largest)[:, :, None]
        np.rint(scaled, out=y, casting="unsafe")

    return call, [y]


def int8_stochastic(n, channels):
    parts = _groups(n, channels)
    y, scale = np.zeros(parts.shape, np.int8), np.zeros(parts.shape[:2], np.float32)
    draw = np.random.Generator(np.random.Philox(0))

    def call():
        largest = np.abs(parts).max(axis=2)
        np.divide(largest, np.float32(127), out=scale)
        scaled = parts * (np.float32(127) / largest)[:, :, None]
        scaled += draw.random(scaled.shape, np.float32)
        np.floor(scaled, out=scaled)
        np.minimum(scaled, np.float32(127), out=y, casting="unsafe")

    return call, [y]


def int8_expand(n, channels):
    parts = _groups(n, channels)
    largest = np.abs(parts).max(axis=2)
    codes = np.rint(parts * (np.float32(127) / largest)[:, :, None]).astype(np.int8)
    scale, y = largest / np.float32(127), np.zeros(parts.shape, np.float32)
    return lambda: np.multiply(codes, scale[:, :, None], out=y), [y]


CASES = {case.__name__: case for case in (
    layernorm_forward, layernorm_backward, rmsnorm_forward, rmsnorm, gated_silu_forward, gated_silu, gelu_forward,
    gelu_backward, relu_forward, relu_backward, tanh_forward,
    tanh_backward, residual, adamw, optimizer_list, optimizer_step, sum_of_squares, scale, zero, bfloat16_compress,
    bfloat16_expand, int8_compress, int8_stochastic, int8_expand)}
CASES |= {"gelu": _both(gelu_forward, gelu_backward), "relu": _both(relu_forward, relu_backward),
          "tanh": _both(tanh_forward, tanh_backward)}
