"""The whole model in float64 NumPy, forward and backward written out by hand: an oracle that shares nothing with cllm.

    x    = E[token] + P[position]
    per block:  h = LN1(x);  q, k, v = project(h);  o = attention(q, k, v)
                x = x + (o Wo + bo  if out_proj else  o)
                x = x + act(LN2(x) W1 + b1) W2 + b2
    logits = LNf(x) E^T  (tied)  or  LNf(x) head^T
    loss   = sum over targets != -1 of -log softmax(logits)[target], or of |LNf(x) - E[target]|^2, over the divisor

Parameter names and shape letters are those of the project: B batch, T time, C channels, H heads, D = C/H, F the
feed-forward layer, V vocabulary. A configuration is a plain dict with the names of `ModelConfig`; `CONFIG` is a small
one. Nothing is tiled, fused or reused, so that each line can be read against the formula above. The comparisons that
the tests make stand at the end.
"""
import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
CONFIG = dict(vocab_size=13, n_layers=2, d_model=16, n_heads=2, d_ff=24, max_seq_len=9, qkv="full", qkv_bias=True,
              out_proj=True, positions="learned", activation="gelu", tied=True, attention="softmax", dropout=0.0,
              norm_eps=1e-5, loss="cross_entropy")
GOLDEN_RATIO = (1 + np.sqrt(5)) / 2


# ---------------------------------------------------------------------------------------------------- parameters

def shapes(config):
    """Name -> shape of every parameter, in the order of the model."""
    V, L, C, H, F, T = (config[k] for k in ("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "max_seq_len"))
    out = {"tok_emb.weight": (V, C)}
    if config["positions"] == "learned":
        out["pos_emb.weight"] = (T, C)
    for i in range(L):
        b = f"blocks.{i}."
        out[b + "ln1.weight"] = out[b + "ln1.bias"] = (C,)
        out[b + "attn.qkv.weight"] = (C, 3 * C) if config["qkv"] == "full" else (3, H, C // H, C // H)
        if config["qkv_bias"]:
            out[b + "attn.qkv.bias"] = (3 * C,)
        if config["attention"] == "crystalline":
            if "distance" in crystal_parts(config):
                out[b + "attn.alpha"] = (H,)
            if "bias" in crystal_parts(config):
                out[b + "attn.beta"] = (H, 12)
        if config["out_proj"]:
            out[b + "attn.out.weight"], out[b + "attn.out.bias"] = (C, C), (C,)
        out[b + "ln2.weight"] = out[b + "ln2.bias"] = (C,)
        out[b + "mlp.fc1.weight"], out[b + "mlp.fc1.bias"] = (C, F), (F,)
        out[b + "mlp.fc2.weight"], out[b + "mlp.fc2.bias"] = (F, C), (C,)
    out["ln_f.weight"] = out["ln_f.bias"] = (C,)
    if not config["tied"]:
        out["head.weight"] = (V, C)
    return out


def draw_parameters(config, seed=0, scale=0.4):
    """Parameters far from their start, so that every term of the model and every gradient counts."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, scale, shape) + (name.rsplit(".", 2)[-2] in ("ln1", "ln2", "ln_f")
                                                 and name.endswith("weight"))
            for name, shape in shapes(config).items()}


def draw_batch(config, B, T, seed=0, ignored=2):
    """Tokens and targets of shape B T, `ignored` of the targets being -1."""
    rng = np.random.default_rng(seed + 1000)
    tokens = rng.integers(0, config["vocab_size"], (B, T))
    targets = rng.integers(0, config["vocab_size"], (B, T))
    targets.reshape(-1)[rng.choice(B * T, min(ignored, B * T - 1), replace=False)] = -1
    return tokens, targets


# ------------------------------------------------------------------------------------------- tables of constants

def primes(n):
    """The first n primes."""
    found = []
    candidate = 2
    while len(found) < n:
        if all(candidate % p for p in found):
            found.append(candidate)
        candidate += 1
    return np.array(found, dtype=float)


def position_table(kind, rows, C):
    """The fixed table of positions, shape rows C."""
    pos = np.arange(rows, dtype=float)[:, None]
    i = np.arange(C)
    f = (i // 2 + 1).astype(float)
    even = i % 2 == 0
    if kind == "sinusoidal":
        angle = pos / 10000.0 ** (2 * (i // 2) / C)
        return np.where(even, np.sin(angle), np.cos(angle))
    if kind == "spiral":
        angle, radius = f * (pos * 2 * np.pi / GOLDEN_RATIO ** 2), 1 + 0.1 * np.sqrt(pos)
    elif kind == "clock":
        angle, radius = f * (2 * np.pi * (pos % 12) / 12), 1 + 0.2 * np.log(pos + 1)
    elif kind == "prime":
        p = primes(rows)[:, None]
        angle, radius = f * (2 * np.pi * (p % 1000) / 1000), 0.5 + 0.5 * np.log(p) / np.log(p[-1])
    table = np.where(even, np.cos(angle), np.sin(angle)) * radius
    return table / np.sqrt((table ** 2).sum(1, keepdims=True))


def crystal_parts(config):
    return config.get("crystalline", ("rotation", "distance", "bias"))


def log_distance(tokens):
    """ln(1 + distance of the lattice coordinates) of each pair of tokens (t is the id), shape B 1 T T."""
    t = np.arange(tokens.max() + 1, dtype=float)
    a = t * 2 * np.pi / GOLDEN_RATIO ** 2
    c = np.stack([np.sqrt(t) * np.cos(a), np.sqrt(t) * np.sin(a), np.log(primes(len(t)) + 1)], 1)[tokens]
    return np.log(1 + np.sqrt(((c[:, :, None] - c[:, None]) ** 2).sum(-1)))[:, None]


def group_difference(tokens):
    """(g(t_i) - g(t_j)) mod 12 of each pair of tokens, shape B T T."""
    return (tokens[:, :, None] % 12 - tokens[:, None] % 12) % 12


def turn(x, tokens, sign):
    """Turn the channel pairs of x (B H T D) by sign times the angle of each token's symmetry group."""
    a = sign * 2 * np.pi * (tokens % 12)[:, None, :, None] / 12
    u, v = x[..., 0::2], x[..., 1::2]
    return np.stack([u * np.cos(a) - v * np.sin(a), u * np.sin(a) + v * np.cos(a)], -1).reshape(x.shape)


# ---------------------------------------------------------------------------------- layers: forward and backward

def layer_norm(x, weight, bias, eps):
    xhat = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return xhat * weight + bias


def layer_norm_backward(dy, x, weight, eps):
    """dx, dweight, dbias."""
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + eps)
    xhat = (x - x.mean(-1, keepdims=True)) * rstd
    dxhat = dy * weight
    dx = rstd * (dxhat - dxhat.mean(-1, keepdims=True) - xhat * (dxhat * xhat).mean(-1, keepdims=True))
    return dx, (dy * xhat).sum((0, 1)), dy.sum((0, 1))


def activate(kind, z):
    if kind == "relu":
        return np.maximum(z, 0)
    if kind == "tanh":
        return np.tanh(z)
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z ** 3)))


def activate_derivative(kind, z):
    if kind == "relu":
        return (z > 0).astype(float)
    if kind == "tanh":
        return 1 - np.tanh(z) ** 2
    s = np.sqrt(2 / np.pi)
    t = np.tanh(s * (z + 0.044715 * z ** 3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t ** 2) * s * (1 + 3 * 0.044715 * z ** 2)


def project(h, weight, bias, H):
    """q, k and v, each of shape B H T D."""
    B, T, C = h.shape
    if weight.ndim == 2:
        qkv = (h @ weight).reshape(B, T, 3, H, C // H)
    else:
        qkv = np.einsum("whdi,bthi->btwhd", weight, h.reshape(B, T, H, C // H))
    if bias is not None:
        qkv = qkv + bias.reshape(3, H, C // H)
    return qkv.transpose(2, 0, 3, 1, 4)


def project_backward(dqkv, h, weight):
    """dh, dweight, dbias from dqkv of shape 3 B H T D."""
    B, T, C = h.shape
    H = dqkv.shape[2]
    d = dqkv.transpose(1, 3, 0, 2, 4)
    if weight.ndim == 2:
        flat = d.reshape(B * T, 3 * C)
        return (flat @ weight.T).reshape(B, T, C), h.reshape(B * T, C).T @ flat, flat.sum(0)
    split = h.reshape(B, T, H, C // H)
    return (np.einsum("whdi,btwhd->bthi", weight, d).reshape(B, T, C), np.einsum("btwhd,bthi->whdi", d, split),
            d.sum((0, 1)).reshape(-1))


def attention(q, k, v, tokens, config, alpha, beta):
    """Output of shape B T C, and what the backward needs."""
    B, H, T, D = q.shape
    parts = crystal_parts(config) if config["attention"] == "crystalline" else ()
    if "rotation" in parts:
        q, k = turn(q, tokens, +1), turn(k, tokens, +1)
    s = q @ k.swapaxes(-1, -2) / np.sqrt(D)
    if "distance" in parts:
        s = s - np.log1p(np.exp(alpha))[:, None, None] * log_distance(tokens)
    if "bias" in parts:
        s = s + beta[:, group_difference(tokens)].swapaxes(0, 1)
    s = np.where(np.tri(T, dtype=bool), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    return (p @ v).transpose(0, 2, 1, 3).reshape(B, T, H * D), (p, q, k, v)


def attention_backward(do, kept, tokens, config, alpha):
    """dqkv of shape 3 B H T D, dalpha, dbeta (None where the attention has none)."""
    p, q, k, v = kept
    B, H, T, D = q.shape
    parts = crystal_parts(config) if config["attention"] == "crystalline" else ()
    do = do.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = p.swapaxes(-1, -2) @ do
    dp = do @ v.swapaxes(-1, -2)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    dq, dk = ds @ k / np.sqrt(D), ds.swapaxes(-1, -2) @ q / np.sqrt(D)
    dalpha = dbeta = None
    if "rotation" in parts:
        dq, dk = turn(dq, tokens, -1), turn(dk, tokens, -1)
    if "distance" in parts:
        dalpha = -(ds * log_distance(tokens)).sum((0, 2, 3)) / (1 + np.exp(-alpha))
    if "bias" in parts:
        groups = group_difference(tokens)[:, None]
        dbeta = np.stack([(ds * (groups == g)).sum((0, 2, 3)) for g in range(12)], 1)
    return np.stack([dq, dk, dv]), dalpha, dbeta


def loss_of_logits(logits, targets, divisor):
    """Loss, and its gradient with respect to the logits."""
    top = logits.max(-1, keepdims=True)
    lse = np.log(np.exp(logits - top).sum(-1, keepdims=True)) + top
    valid = targets != -1
    one_hot = np.eye(logits.shape[-1])[np.where(valid, targets, 0)]
    loss = ((lse[..., 0] - (logits * one_hot).sum(-1)) * valid).sum() / divisor
    return loss, (np.exp(logits - lse) - one_hot) * valid[..., None] / divisor


# ----------------------------------------------------------------------------------------------------- the model

def run(config, parameters, tokens, targets=None, num_targets=None):
    """Logits of shape B T V, loss and gradients by name (None and None without targets)."""
    P = {name: np.asarray(value, dtype=float) for name, value in parameters.items()}
    H, eps, act = config["n_heads"], config["norm_eps"], config["activation"]
    tokens = np.asarray(tokens)
    T, E = tokens.shape[1], P["tok_emb.weight"]
    x = E[tokens]
    if config["positions"] == "learned":
        x = x + P["pos_emb.weight"][:T]
    elif config["positions"] != "none":
        x = x + position_table(config["positions"], config["max_seq_len"], config["d_model"])[:T]
    tape = []
    for i in range(config["n_layers"]):
        own = under(P, f"blocks.{i}.")
        h = layer_norm(x, own["ln1.weight"], own["ln1.bias"], eps)
        q, k, v = project(h, own["attn.qkv.weight"], own.get("attn.qkv.bias"), H)
        o, kept = attention(q, k, v, tokens, config, own.get("attn.alpha"), own.get("attn.beta"))
        middle = x + (o @ own["attn.out.weight"] + own["attn.out.bias"] if config["out_proj"] else o)
        g = layer_norm(middle, own["ln2.weight"], own["ln2.bias"], eps)
        z = g @ own["mlp.fc1.weight"] + own["mlp.fc1.bias"]
        tape.append((x, h, kept, o, middle, g, z))
        x = middle + activate(act, z) @ own["mlp.fc2.weight"] + own["mlp.fc2.bias"]
    y = layer_norm(x, P["ln_f.weight"], P["ln_f.bias"], eps)
    head = E if config["tied"] else P["head.weight"]
    logits = y @ head.T
    if targets is None:
        return logits, None, None

    targets = np.asarray(targets)
    valid = targets != -1
    divisor = valid.sum() if num_targets is None else num_targets
    G = {name: np.zeros_like(value) for name, value in P.items()}
    if config["loss"] == "mse":
        difference = (y - E[np.where(valid, targets, 0)]) * valid[..., None]
        loss, dy = (difference ** 2).sum() / divisor, 2 * difference / divisor
    else:
        loss, dlogits = loss_of_logits(logits, targets, divisor)
        dy = dlogits @ head
        G["tok_emb.weight" if config["tied"] else "head.weight"] += np.einsum("btv,btc->vc", dlogits, y)
    dx, G["ln_f.weight"], G["ln_f.bias"] = layer_norm_backward(dy, x, P["ln_f.weight"], eps)
    for i in reversed(range(config["n_layers"])):
        b = f"blocks.{i}."
        x, h, kept, o, middle, g, z = tape[i]
        G[b + "mlp.fc2.weight"] = np.einsum("btf,btc->fc", activate(act, z), dx)
        G[b + "mlp.fc2.bias"] = dx.sum((0, 1))
        dz = dx @ P[b + "mlp.fc2.weight"].T * activate_derivative(act, z)
        G[b + "mlp.fc1.weight"] = np.einsum("btc,btf->cf", g, dz)
        G[b + "mlp.fc1.bias"] = dz.sum((0, 1))
        dmiddle, G[b + "ln2.weight"], G[b + "ln2.bias"] = layer_norm_backward(
            dz @ P[b + "mlp.fc1.weight"].T, middle, P[b + "ln2.weight"], eps)
        dx = dx + dmiddle
        do = dx
        if config["out_proj"]:
            G[b + "attn.out.weight"] = np.einsum("bti,btc->ic", o, dx)
            G[b + "attn.out.bias"] = dx.sum((0, 1))
            do = dx @ P[b + "attn.out.weight"].T
        dqkv, dalpha, dbeta = attention_backward(do, kept, tokens, config, P.get(b + "attn.alpha"))
        dh, G[b + "attn.qkv.weight"], dbias = project_backward(dqkv, h, P[b + "attn.qkv.weight"])
        for name, value in (("qkv.bias", dbias), ("alpha", dalpha), ("beta", dbeta)):
            if f"{b}attn.{name}" in P:
                G[f"{b}attn.{name}"] = value
        dh, G[b + "ln1.weight"], G[b + "ln1.bias"] = layer_norm_backward(dh, x, P[b + "ln1.weight"], eps)
        dx = dx + dh
    np.add.at(G["tok_emb.weight"], tokens, dx)
    if config["positions"] == "learned":
        G["pos_emb.weight"][:T] = dx.sum(0)
    return logits, loss, G


# -------------------------------------------------------------------------------------------------- the optimizer

def rate(step, lr, warmup, total, min_lr):
    """Learning rate of a step counted from 0: linear warm-up, then half a cosine."""
    if step < warmup:
        return lr * (step + 1) / warmup
    t = min(1.0, (step - warmup) / max(1, total - warmup))
    return min_lr + (lr - min_lr) * (1 + np.cos(np.pi * t)) / 2


def clip(gradients, max_norm):
    """Scale the gradients in place by min(1, max_norm / norm); returns the norm before."""
    norm = np.sqrt(sum((g ** 2).sum() for g in gradients.values()))
    for g in gradients.values():
        g *= min(1.0, max_norm / norm)
    return norm


def adamw(parameters, gradients, state, lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1):
    """One step of AdamW in place; `state` is a dict, empty before the first step."""
    n = state["n"] = state.get("n", 0) + 1
    for name, w in parameters.items():
        m, v = state.setdefault(name, (np.zeros_like(w), np.zeros_like(w)))
        m[...] = beta1 * m + (1 - beta1) * gradients[name]
        v[...] = beta2 * v + (1 - beta2) * gradients[name] ** 2
        decay = weight_decay if name.endswith(".weight") and w.ndim >= 2 else 0.0
        w -= lr * (m / (1 - beta1 ** n) / (np.sqrt(v / (1 - beta2 ** n)) + eps) + decay * w)


# --------------------------------------------------------------------------------------------- golden files, checks

def read_golden(name):
    """A golden file as (config, arrays); arrays is a dict of everything in the file but the configuration."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return json.loads(str(arrays.pop("config"))), arrays


def under(arrays, prefix):
    """The entries whose key starts with prefix, without the prefix."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def assert_near(got, reference, tol, what=""):
    """max|got - reference| <= tol * max|reference|, per array; NaN, another shape or another set of names fail."""
    if isinstance(reference, dict):
        assert sorted(got) == sorted(reference), f"{what}: other names"
        for name in reference:
            assert_near(got[name], reference[name], tol, f"{what}{name}")
        return
    got, reference = np.asarray(got, dtype=float), np.asarray(reference, dtype=float)
    assert got.shape == reference.shape, f"{what}: shape {got.shape}, reference {reference.shape}"
    difference, size = np.abs(got - reference).max(initial=0), np.abs(reference).max(initial=0)
    assert difference <= tol * size, f"{what}: differs by {difference:.3g}, allowed {tol:g} of {size:.3g}"


def assert_same_bits(got, reference, what=""):
    """Equal to the last bit, and of the same type and shape; arrays, floats, or mappings and sequences of them."""
    if hasattr(reference, "keys"):
        assert sorted(got) == sorted(reference), f"{what}: other names"
        for name in sorted(reference):
            assert_same_bits(got[name], reference[name], f"{what}{name}")
    elif isinstance(reference, (list, tuple)):
        assert len(got) == len(reference), f"{what}: {len(got)} entries, reference {len(reference)}"
        for i, (a, b) in enumerate(zip(got, reference, strict=True)):
            assert_same_bits(a, b, f"{what}[{i}]")
    else:
        a, b = np.asarray(got), np.asarray(reference)
        assert a.dtype == b.dtype and a.shape == b.shape, f"{what}: {a.dtype} {a.shape}, reference {b.dtype} {b.shape}"
        if a.tobytes() != b.tobytes():
            with np.errstate(invalid="ignore"):
                raise AssertionError(f"{what}: {int((a != b).sum())} of {a.size} elements differ, "
                                     f"by up to {np.abs(a - b).max():.3g}")
