"""Each kernel against NumPy and, where it is installed, PyTorch: speed, and share of what the machine can do.

    python profiling/kernels.py
    python profiling/kernels.py --peer-python /path/to/python/with/torch --threads 1
    python profiling/kernels.py --only linear_backward_weight,attention --largest 20
    python profiling/kernels.py --preset gpt2 --batch-size 2 --seq-len 512     # the shapes of that model
    python profiling/kernels.py --only head --largest 500 --rounds 3

One process a library; for each case all three prepare the same numbers, show by a digest of their results that they
compute the same, and take short bursts in turn. Products and attention are measured against the rate of fused
multiply-adds, what works element by element against the best way to move as many bytes (`machine/limits.py`), both measured in
the same run, and against a copy of as many bytes that takes its bursts in turn with the others.
"""

import sys
import tempfile
from math import exp, log, prod
from pathlib import Path

import draw
import harness
from jobs import models, options, record
from machine.limits import Limits
from peers import process

from cllm.comparison.resident import forget_peak, peak_resident_bytes, resident_bytes
from cllm.models.architecture import program_of
from cllm.models.gpt import ModelConfig

FAMILIES = ("gpt", "crystalline")  # of which `shapes_of` knows what kernels they call

PRODUCTS = ((512, 64, 64), (1024, 512, 512), (1024, 512, 2048), (1024, 2048, 512), (4096, 768, 3072),
            (2048, 768, 50257), (333, 129, 517), (64, 512, 2048))
ROWS = ((2048, 512), (512, 768))
FAR_ROWS = (16384, 1024)        # 64 MiB an array in float32: out of every cache
HIDDEN = ((2048, 2048), (512, 3072))
PARAMETERS = ((19_000_000,), (100_000,))
ARRAYS = ((28, 4745), (76, 257_509))  # the parameters of the presets tiny and small, were they all of one length
ACTIVATIONS = ("gelu", "relu", "tanh")
COPIED = ((8192, 2048), (2048, 2048), (512, 512))

SHAPES = {
    "linear_backward_weight": PRODUCTS,                                                 # N, in, out
    "linear_forward": PRODUCTS,
    "linear_backward_input": PRODUCTS,
    "block_backward_weight": ((2048, 8, 64), (512, 8, 64)),                             # N, H, D
    "attention": ((8, 8, 256, 64), (4, 8, 1024, 64), (1, 12, 2048, 64), (16, 4, 64, 32)),  # B, H, T, D
    "grouped_attention": ((1, 9, 3, 1024, 64), (1, 9, 3, 512, 64), (1, 32, 8, 1024, 64)),  # B, H, K, T, D
    "window_attention": ((1, 9, 3, 1024, 64, 256), (1, 8, 8, 4096, 64, 512)),           # B, H, K, T, D, W
    "head": ((2048, 768, 50257), (2048, 512, 256)),                                     # N, C, V
    "layernorm_forward": (*ROWS, FAR_ROWS), "layernorm_backward": (*ROWS, FAR_ROWS),    # N, C
    "rmsnorm_forward": (*ROWS, FAR_ROWS), "rmsnorm": (*ROWS, FAR_ROWS),
    "residual": (*ROWS, FAR_ROWS),
    "gated_silu_forward": (*HIDDEN, FAR_ROWS), "gated_silu": (*HIDDEN, FAR_ROWS),       # N, F
    **{f"{kind}{part}": (*HIDDEN, FAR_ROWS) for kind in ACTIVATIONS for part in ("_forward", "_backward", "")},  # N, F
    "adamw": PARAMETERS, "optimizer_step": PARAMETERS,                                  # elements
    "optimizer_list": ARRAYS,                                                           # arrays, elements of each
    "sum_of_squares": PARAMETERS, "scale": PARAMETERS, "zero": PARAMETERS,
    "bfloat16_compress": COPIED, "bfloat16_expand": COPIED,                             # N, C
    "int8_compress": COPIED, "int8_expand": COPIED, "int8_stochastic": COPIED,
}

# float32 words read and written for each element, for what is bound by memory. int8 has a scale to 128 elements.
INT8_WORDS = 1.25 + 1 / 128
# An activation or norm without `_forward` or `_backward` is both; a step of the optimizer is norm, clipping, AdamW and zeroing,
# `optimizer_list` the same over many arrays.
WORDS = {"layernorm_forward": 2, "layernorm_backward": 4, "residual": 3, "rmsnorm_forward": 2, "rmsnorm": 5,
         "gated_silu_forward": 3, "gated_silu": 8, "adamw": 7, "optimizer_step": 11,
         "optimizer_list": 11, "sum_of_squares": 1, "scale": 2, "zero": 1,
         **{f"{kind}{part}": words for kind in ACTIVATIONS
            for part, words in (("_forward", 2), ("_backward", 3), ("", 5))},
         "bfloat16_compress": 1.5, "bfloat16_expand": 1.5, "int8_compress": INT8_WORDS, "int8_expand": INT8_WORDS,
         "int8_stochastic": INT8_WORDS}

# Whom cllm is compared with.
LIBRARIES = ("numpy", "torch")

# Relative difference of the digests (mean magnitudes) that float32 sums in another order explain.
TOLERANCE = 1e-4


def main() -> int:
    """Measure, print, write; the exit code is 1 when cllm failed somewhere or libraries computed different things."""
    parser = options.parser(__doc__.splitlines()[0], strategies=None, rounds=7)
    parser.set_defaults(preset=None)
    parser.add_argument("--only", default=",".join(SHAPES), metavar="A,B,...", help="kernels to measure")
    parser.add_argument("--largest", type=float, default=50.0, metavar="GFLOP",
                        help="leave out cases of more work than this; 500 takes all")
    parser.add_argument("--float64", action="store_true", help="also how fast cllm's float64 is beside its float32")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON",
                        help="interpreter that has PyTorch (default: this one)")
    arguments = options.parsed(parser)
    unknown = set(arguments.only.split(",")) - set(SHAPES)
    if unknown:
        parser.error(f"unknown kernels {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
    shapes = SHAPES
    if models.is_asked(arguments):
        model = models.asked(arguments)
        if model["family"] not in FAMILIES:
            parser.error(f"--model: shapes are known of {', '.join(FAMILIES)}, not of {model['family']}")
        shapes = shapes_of(model["config"], arguments.batch_size, arguments.seq_len)
    cases = [(kernel, shape) for kernel in arguments.only.split(",") for shape in shapes[kernel]
             if flops(kernel, shape) <= arguments.largest * 1e9]
    rows, problems = measure(arguments, cases)
    harness.say("")
    _print(rows, problems)
    path = record.write_result("kernels", arguments.threads, {"rounds": arguments.rounds, "rows": rows,
                                                               "problems": problems}, arguments.out)
    pictures = draw.draw(path)
    print(draw.told(path, pictures))
    return 1 if problems else 0


def shapes_of(config: dict, batch: int, time: int) -> dict[str, tuple]:
    """The shapes at which a model of that configuration calls each kernel, in place of `SHAPES`."""
    rows, channels, hidden, heads = batch * time, config["d_model"], config["d_ff"], config["n_heads"]
    lattice = config["qkv"] == "lattice"
    products = [*([] if lattice else [(rows, channels, 3 * channels)]), *([(rows, channels, channels)] if config["out_proj"]
                else []), (rows, channels, hidden), (rows, hidden, channels)]
    attention = (batch, heads, time, channels // heads)
    row, wide, weight = ((rows, channels),), ((rows, hidden),), ((channels * hidden,),)
    sizes = [prod(parameter.shape) for parameter in program_of(ModelConfig(**config)).parameters.values()]
    return {**{kernel: tuple(products) for kernel in ("linear_backward_weight", "linear_forward", "linear_backward_input")},
            "block_backward_weight": ((rows, heads, channels // heads),) if lattice else (), "attention": (attention,),
            "grouped_attention": (), "window_attention": (), "head": ((rows, channels, config["vocab_size"]),),
            "optimizer_list": ((len(sizes), sum(sizes) // len(sizes)),),
            **{kernel: weight if len(SHAPES[kernel][0]) == 1 else wide if kernel.startswith((*ACTIVATIONS, "gated")) else row
               for kernel in WORDS if kernel != "optimizer_list"}}


def flops(kernel: str, shape: tuple[int, ...]) -> float:
    """Floating-point operations of the products in one call; 0 for what is bound by memory."""
    if kernel.startswith("linear"):
        return 2.0 * prod(shape)
    if kernel == "block_backward_weight":
        n, heads, head_dim = shape
        return 2.0 * n * heads * head_dim * head_dim
    if kernel == "attention":
        batch, heads, time, head_dim = shape
        # Two products forward, five backward, over the lower triangle with its diagonal.
        return 7 * 2.0 * batch * heads * head_dim * time * (time + 1) / 2
    if kernel in ("grouped_attention", "window_attention"):
        batch, heads, _, time, head_dim = shape[:5]
        window = shape[5] if len(shape) > 5 else time
        return 7 * 2.0 * batch * heads * head_dim * (time * window - window * (window - 1) / 2)
    return 3 * 2.0 * prod(shape) if kernel == "head" else 0.0


def moved_bytes(kernel: str, shape: tuple[int, ...]) -> int:
    """Bytes read and written in one call of what is bound by memory; 0 for the others."""
    return 0 if flops(kernel, shape) else int(4 * WORDS[kernel] * prod(shape))


def measure(arguments, cases: list[tuple[str, tuple]]) -> tuple[list[dict], list[str]]:
    """Rows of these kernels at these shapes, and what went wrong.

    Parameters
    ----------
    arguments : Namespace
        ``threads``, ``rounds``, ``peer_python``, ``float64``.
    cases : list of (kernel, shape)
    """
    rows, problems = [], []
    peers = {"cllm": process.Peer("peers/cllm/kernels.py", arguments.threads),
             "numpy": process.Peer("peers/numpy/kernels.py", arguments.threads),
             "torch": process.Peer("peers/torch/kernels.py", arguments.threads, arguments.peer_python)}
    if arguments.float64:
        peers["float64"] = process.Peer("peers/cllm/kernels.py", arguments.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            limits = Limits(Path(folder), arguments.threads)
            if limits.library:
                peers["copy"] = process.Peer("peers/copying.py", arguments.threads)
            for kernel, shape in cases:
                harness.say(f"{kernel} {shape}")
                prepared = _prepared(peers, kernel, shape, arguments.threads, problems)
                nbytes = moved_bytes(kernel, shape)
                if nbytes and "copy" in peers:
                    prepared["copy"] = peers["copy"].ask("prepare", library=str(limits.library), nbytes=nbytes // 2,
                                                         threads=arguments.threads)
                if prepared:
                    resident = {library: resident_bytes(peers[library].pid) for library in prepared
                                if forget_peak(peers[library].pid)}
                    row = _row(kernel, shape, peers, prepared, arguments.rounds, limits)
                    # What a call takes for itself and gives back; its inputs and results were there before.
                    row["working_bytes"] = {library: peak_resident_bytes(peers[library].pid) - before
                                            for library, before in resident.items()}
                    rows.append(row)
            for row in rows:  # the limits are the best that was seen in all this time
                _set_limit(row, limits)
    finally:
        for peer in peers.values():
            peer.close()
    return rows, problems


def _set_limit(row: dict, limits: Limits) -> None:
    kernel, shape = row["kernel"], row["shape"]
    limit = limits.flops() if flops(kernel, shape) else limits.bandwidth(moved_bytes(kernel, shape))
    row["limit"] = limit
    row["share"] = {library: limit and rate / limit for library, rate in row["rate"].items()}


def _prepared(peers: dict, kernel: str, shape: tuple, threads: int, problems: list[str]) -> dict[str, dict]:
    prepared = {}
    for library, peer in [one for one in peers.items() if one[0] != "copy"]:
        settings = {"threads": threads} | ({"dtype": "float64"} if library == "float64" else {})
        try:
            one = peer.ask("prepare", kernel=kernel, shape=list(shape), settings=settings)
            if one is not None:
                prepared[library] = one
        except process.PeerError as error:
            if library == "torch" and "No module named" in str(error):
                print("PyTorch is not installed there: its column stays empty", file=sys.stderr)
                peers.pop(library).close()
            else:
                problems.append(f"{kernel} {shape}: {library} failed: {error}")
    ours = prepared.get("cllm")
    if ours:
        problems.extend(f"{kernel} {shape}: {library}'s result {one['digest']} is not cllm's {ours['digest']}"
                        for library, one in prepared.items()
                        if not abs(one["digest"] - ours["digest"]) <= tolerance(kernel, shape) * abs(ours["digest"]))
    return prepared


def tolerance(kernel: str, shape: tuple[int, ...]) -> float:
    """How far two libraries' digests may be from each other, as a share.

    What is rounded at random differs by chance: an error has a standard deviation of half a step at most, the difference
    of two means of n that of sqrt(1 / 2n), six of these stand beside a mean magnitude of 20 steps at the least.
    """
    return max(TOLERANCE, 6 * (2 * prod(shape)) ** -0.5 / 20) if kernel == "int8_stochastic" else TOLERANCE


def _row(kernel: str, shape: tuple, peers: dict, prepared: dict, rounds: int, limits: Limits) -> dict:
    bursts = {}
    for library, one in prepared.items():
        repeats = harness.repeats_for(one["seconds"])
        bursts[library] = lambda peer=peers[library], repeats=repeats: peer.ask("burst", repeats=repeats)
    timings = harness.interleave(bursts, rounds)
    work = flops(kernel, shape)
    nbytes = moved_bytes(kernel, shape)
    limits.look(nbytes)
    rates = {library: (work or nbytes * (2 if library == "float64" else 1)) / timing.median
             for library, timing in timings.items()}
    row = {"kernel": kernel, "shape": list(shape), "unit": "GFLOP/s" if work else "GB/s", "rate": rates,
           "seconds": {library: timing.to_dict() for library, timing in timings.items()}, "time_against": {},
           "text": {}, "float64_speed": None, "share_of_copy": None}
    if "cllm" in timings and "float64" in timings:
        row["float64_speed"] = harness.ratio(timings["cllm"], timings["float64"]).to_dict()
    if "cllm" in timings and "copy" in timings:  # as many bytes, in turn with it
        row["share_of_copy"] = harness.ratio(timings["copy"], timings["cllm"]).to_dict()
    for library in [one for one in timings if one in LIBRARIES and "cllm" in timings]:
        ratio = harness.ratio(timings["cllm"], timings[library])
        row["time_against"][library], row["text"][library] = ratio.to_dict(), str(ratio)
    return row


def _print(rows: list[dict], problems: list[str]) -> None:
    libraries = [library for library in ("cllm", *LIBRARIES) if any(library in row["rate"] for row in rows)]
    print(f"{'kernel':24s} {'shape':18s} {'unit':8s} " + " ".join(f"{library:>8s}" for library in libraries)
          + f" {'limit':>8s} {'share':>6s}  time of cllm against each: median of paired ratios (least to most)")
    for row in rows:
        cells = [f"{row['rate'][one] / 1e9:8.1f}" if one in row["rate"] else f"{'-':>8s}" for one in libraries]
        limit = f"{row['limit'] / 1e9:8.1f}" if row["limit"] else f"{'-':>8s}"
        share = row["share"].get("cllm")
        print(f"{row['kernel']:24s} {'x'.join(map(str, row['shape'])):18s} {row['unit']:8s} {' '.join(cells)} {limit} "
              f"{'-' if share is None else f'{share:.2f}':>6s}  "
              + "  ".join(f"{library} {text}" for library, text in row["text"].items())
              + (f"  {row['share_of_copy']['value']:.2f} of a copy" if row["share_of_copy"] else "")
              + (f"  float64 at {row['float64_speed']['value']:.2f} of its speed" if row["float64_speed"] else ""))
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        _print_mean(kernel, [row for row in rows if row["kernel"] == kernel and row["time_against"]])
    for row in [row for row in rows if row["kernel"] == "head"]:
        print(f"{row['kernel']:24s} {'x'.join(map(str, row['shape'])):18s} a call's own memory, MB: "
              + "  ".join(f"{library} {nbytes / 1e6:.1f}" for library, nbytes in row["working_bytes"].items()))
    for problem in problems:
        print(problem)


def _print_mean(kernel: str, rows: list[dict]) -> None:
    if not rows:
        return
    # The better peer is the one against whom we look worse.
    worst = [max(row["time_against"].values(), key=lambda one: one["value"]) for row in rows]
    mean = exp(sum(log(one["value"]) for one in worst) / len(worst))
    unclear = sum(one["intervals_overlap"] for one in worst)
    note = f"; in {unclear} of {len(worst)} shapes the intervals overlap" if unclear else ""
    print(f"{kernel:24s} speed over the better peer, geometric mean: {1 / mean:.2f}, least "
          f"{1 / max(one['value'] for one in worst):.2f}{note}")


if __name__ == "__main__":
    sys.exit(options.run(main))
