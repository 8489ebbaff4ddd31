"""An MLP-Mixer (Tolstikhin et al. 2021) that learns to name shapes in pictures, which this file draws: no time steps at all.

    python examples/mixer.py              # trains for seconds, within three megabytes
    python examples/mixer.py --steps 400
"""

import argparse
from dataclasses import dataclass

import numpy as np

import cllm
from cllm import layers

SHAPES = ("ring", "square", "plus", "cross")
HELD_OUT = 500  # pictures on which accuracy is measured


@dataclass(frozen=True)
class Patches(cllm.Layer):
    """Pictures of S x S pixels cut into P patches of Q pixels."""

    S: int
    P: int
    Q: int

    sites = (cllm.Site("y", "B P Q", "the pixels of each patch"),)
    feeds = (cllm.Feed("image", "B S S"),)

    def forward(self, image, *, y):
        side = int(self.Q ** 0.5)
        count = self.S // side
        y[...] = image.reshape(-1, count, side, count, side).swapaxes(2, 3).reshape(y.shape)


@dataclass(frozen=True)
class Swap(cllm.Layer):
    """P rows of C columns become C rows of P columns: what comes next mixes places instead of channels."""

    P: int
    C: int

    sites = (cllm.Site("y", "B C P", "rows and columns exchanged"),)
    reads = {"x": "B P C"}

    def forward(self, x, *, y):
        y[...] = x.swapaxes(1, 2)

    def backward(self, dy, *, dx):
        dx[...] = dy.swapaxes(1, 2)


@dataclass(frozen=True)
class MeanPool(cllm.Layer):
    """The mean of a picture's P rows."""

    P: int
    C: int

    sites = (cllm.Site("y", "B C", "mean over patches"),)
    reads = {"x": "B P C"}

    def forward(self, x, *, y):
        np.mean(x, axis=1, out=y)

    def backward(self, dy, *, dx):
        dx[...] = dy[:, None] / dx.dtype.type(self.P)


@dataclass(frozen=True)
class Mixer(cllm.Architecture):
    """Blocks of two feed-forward layers, one over the places of a channel, one over the channels of a place."""

    side: int = 16
    patch: int = 4
    n_layers: int = 2
    d_model: int = 32
    d_ff: int = 64
    classes: int = len(SHAPES)

    def wire(self, w):
        P, Q, C, F = (self.side // self.patch) ** 2, self.patch ** 2, self.d_model, self.d_ff
        x = w.add("patches", Patches(S=self.side, P=P, Q=Q))
        x = w.add("embed", layers.Linear(I=Q, O=C, std=Q ** -0.5), x=x)
        for number in range(self.n_layers):
            with w.block(number):
                h = w.add("ln1", layers.LayerNorm(C=C), x=x)
                h = w.add("swap", Swap(P=P, C=C), x=h)
                h = self.feed_forward(w, "places", P, F, h)
                h = w.add("swap_back", Swap(P=C, C=P), x=h)
                x = w.add("res1", layers.Residual(C=C), x=x, branch=h)
                h = w.add("ln2", layers.LayerNorm(C=C), x=x)
                h = self.feed_forward(w, "channels", C, F, h)
                x = w.add("res2", layers.Residual(C=C), x=x, branch=h)
        x = w.add("ln_f", layers.LayerNorm(C=C), x=x)
        x = w.add("pool", MeanPool(P=P, C=C), x=x)
        w.add("head", layers.CrossEntropyHead(V=self.classes, C=C), {"targets": "label"}, x=x)

    @staticmethod
    def feed_forward(w, name, width, hidden, x):
        """Two products with a nonlinearity between them, over the last axis of whatever `x` is."""
        h = w.add(f"{name}.fc1", layers.Linear(I=width, O=hidden, group="mlp", std=width ** -0.5), x=x)
        h = w.add(f"{name}.act", layers.Activation(F=hidden), x=h)
        return w.add(f"{name}.fc2", layers.Linear(I=hidden, O=width, group="mlp", std=hidden ** -0.5), x=h)

    def example_batch(self, rng, batch_size, seq_len):
        return draw(rng, batch_size, self.side, self.classes)


def draw(rng: np.random.Generator, count: int, side: int = 16, classes: int = len(SHAPES)) -> dict[str, np.ndarray]:
    """Pictures of one shape each, of any size and brightness, somewhere, with noise; and which shape it is."""
    label = rng.integers(0, classes, count)
    y, x = np.mgrid[:side, :side]
    radius = side * rng.uniform(0.2, 0.3, (count, 1, 1))
    middle = side * rng.uniform(0.35, 0.65, (2, count, 1, 1))
    down, right = abs(y - middle[0]), abs(x - middle[1])
    within = np.where(np.maximum(down, right) <= radius, 0, side)
    distance = np.stack([abs(np.hypot(down, right) - radius), abs(np.maximum(down, right) - radius),
                         np.minimum(down, right) + within, abs(down - right) + within])  # to the lines of each of SHAPES
    ink = np.clip(1.2 - distance[label % len(SHAPES), np.arange(count)], 0, 1)
    return {"image": ink * rng.uniform(0.6, 1, (count, 1, 1)) + rng.normal(0, 0.1, (count, side, side)), "label": label}


def main(steps: int = 120, threads: int | None = None) -> list[tuple[float, float]]:
    """Train, and return loss and accuracy on held-out pictures: before, and after each quarter of the steps."""
    model = cllm.Model(Mixer(), seed=0)
    rng = np.random.default_rng(0)
    held_out = draw(rng, HELD_OUT)

    executor = cllm.Executor(model, 48, strategy=cllm.MemoryBudget("3MB"), num_threads=threads)
    print(executor.plan.table())
    look = cllm.Executor(model, HELD_OUT, strategy="cache@50", num_threads=threads)
    optimizer = cllm.AdamW(model, lr=3e-3)
    found = []
    for step in range(steps + 1):
        if step % max(1, steps // 4) == 0:
            right = look.logits(image=held_out["image"]).argmax(axis=1) == held_out["label"]
            found.append((look.loss(**held_out), float(right.mean())))
            print(f"step {step:4d}: loss {found[-1][0]:.3f}, {found[-1][1]:.1%} of {HELD_OUT} new pictures are named right")
        if step < steps:
            model.zero_grad()
            executor.loss_and_grad(**draw(rng, 48))
            cllm.clip_grad_norm(model, 1.0)
            optimizer.step()
    print(f"highest byte written: {executor.high_water_bytes:,}, as predicted: {executor.memory.arena_bytes:,}")
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=120)
    progress = main(**vars(options.parse_args()))
