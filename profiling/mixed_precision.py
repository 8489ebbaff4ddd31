"""Does mixed precision pay? What bfloat16 storage of weights and activations saves and costs, what products in it bring.

    python profiling/mixed_precision.py
    python profiling/mixed_precision.py --peer-python /path/to/python/with/torch

Memory: bytes of the model's arrays and of the arena, as planned. Speed: whole steps with activations kept as float32 and
as bfloat16, and with products in bfloat16; the rounding of all matrices, which every step with a working copy would begin with;
products in float32, in bfloat16, and of weights that are kept as bfloat16 and widened; PyTorch's in both formats, which use the
processor's bfloat16 instruction where it has one; that instruction from registers. What training loses is in
mixed_precision_loss.py and bfloat16_loss.py.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
from jobs import models, options, record
from peers import process

import cllm
from cllm.models.architecture import program_of

STRATEGIES = ("cache", "bf16", "selective", "bf16:selective")
STEPS = ("cache", "bf16", "cache+bfloat16")
PRODUCTS = {"attn.qkv": (2048, 512, 1536), "attn.out": (2048, 512, 512), "mlp.fc1": (2048, 512, 2048),
            "mlp.fc2": (2048, 2048, 512)}  # of the preset small at 8 x 256: N, in, out
CONTESTANTS = {"cllm": ("product", "product_in_bfloat16", "product_of_copy"), "torch": ("float32", "bfloat16", "rounded")}


def main() -> int:
    """Compute, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of bursts")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON",
                        help="interpreter that has PyTorch (default: this one)")
    options.add_common(parser)
    arguments = options.parsed(parser)
    config = cllm.ModelConfig.preset("small")
    data = {"config": config.to_dict(), "batch_size": 8, "seq_len": 256, "memory": memory(config),
            "instruction": instruction(arguments.threads)}
    data |= steps(config, arguments)
    data["products"] = products(arguments)
    harness.say("")
    report(data)
    path = record.write_result("mixed_precision", arguments.threads, data, arguments.out)
    print(f"\nwritten: {path}")
    return 0


def memory(config: cllm.ModelConfig) -> dict:
    """Bytes of parameters, of their working copy in bfloat16, and of the arena by strategy."""
    shapes = [p.shape for p in program_of(config).parameters.values()]
    sizes = [cllm.program.dims.elements(" ".join(map(str, shape)), {}) for shape in shapes]
    matrices = sum(size for size, shape in zip(sizes, shapes, strict=True) if len(shape) > 1)
    plans = {name: cllm.plan(config, 8, 256, strategy=name, num_threads=2) for name in STRATEGIES}
    return {"parameter_bytes": 4 * sum(sizes), "matrix_elements": matrices, "working_copy_bytes": 2 * matrices,
            "arena_bytes": {name: plan.arena_bytes for name, plan in plans.items()},
            "total_bytes": {name: plan.total_bytes for name, plan in plans.items()}}


def instruction(threads: int) -> dict | None:
    """Speeds of multiply-adds in float32 and of dots of pairs in bfloat16, from registers; None where that cannot be
    built."""
    source = Path(__file__).parent / "machine" / "bf16_dot.c"
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "bf16_dot")
        build = ["cc", "-O3", "-march=native", "-fopenmp", str(source), "-o", program]
        try:
            subprocess.run(build, check=True, capture_output=True)
            done = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True,
                                  env=process.environment(threads))
        except (OSError, subprocess.CalledProcessError):
            return None
    fused, dotted = map(float, done.stdout.split())
    return {"float32": fused, "bfloat16": dotted or None}


def steps(config: cllm.ModelConfig, arguments) -> dict:
    """Whole steps by strategy, and the rounding of all matrices."""
    elements = memory(config)["matrix_elements"]
    peers = {name: process.Peer("peers/cllm/steps.py", arguments.threads) for name in STEPS}
    peers["round_weights"] = process.Peer("peers/cllm/products.py", arguments.threads)
    try:
        for name in STEPS:
            harness.say(f"making {name}")
            peers[name].ask("make", model=models.told(config), batch_size=8, seq_len=256, strategy=name,
                            threads=arguments.threads)
        prepared(peers["round_weights"], "round_weights", (elements,), arguments.threads)
        repeats = {name: 1 for name in STEPS} | {"round_weights": 10}
        timings = harness.interleave({name: lambda peer=peer, times=repeats[name]: peer.ask("burst", repeats=times)
                                      for name, peer in peers.items()}, arguments.rounds, harness.say)
    finally:
        for peer in peers.values():
            peer.close()
    return {"seconds": {name: timing.to_dict() for name, timing in timings.items()},
            "ratios": {name: harness.ratio(timings[name], timings["cache"]).to_dict() for name in STEPS[1:]}}


def prepared(peer: process.Peer, case: str, shape: tuple[int, ...], threads: int) -> dict:
    """What a contestant says of a case that it has made ready."""
    return peer.ask("prepare", kernel=case, shape=list(shape), settings={"threads": threads})


def products(arguments) -> list[dict]:
    """A row for each product of a block: cllm's in both formats and from a widened copy, PyTorch's in both."""
    rows = []
    for name, shape in PRODUCTS.items():
        peers, bursts = [], {}
        for library, cases in CONTESTANTS.items():
            python = arguments.peer_python if library == "torch" else sys.executable
            for case in cases:
                harness.say(f"{name}: {library} {case}")
                peer = process.Peer(f"peers/{library}/products.py", arguments.threads, python)
                peers.append(peer)
                try:
                    one = prepared(peer, case, shape, arguments.threads)
                except process.PeerError as error:
                    print(f"{library} {case}: {error}", file=sys.stderr)
                    continue
                repeats = harness.repeats_for(one["seconds"])
                bursts[f"{library} {case}"] = lambda peer=peer, repeats=repeats: peer.ask("burst", repeats=repeats)
        timings = harness.interleave(bursts, arguments.rounds)
        for peer in peers:
            peer.close()
        flops = 2.0 * shape[0] * shape[1] * shape[2]
        base = timings["cllm product"]
        rows.append({"name": name, "shape": list(shape),
                     "rate": {one: flops / timing.median for one, timing in timings.items()},
                     "seconds": {one: timing.to_dict() for one, timing in timings.items()},
                     "time_against_product": {one: harness.ratio(timing, base).to_dict() for one, timing in timings.items()},
                     "text": {one: str(harness.ratio(timing, base)) for one, timing in timings.items() if timing is not base}})
    return rows


def report(data: dict) -> None:
    """On the terminal."""
    found = data["memory"]
    print(f"parameters {found['parameter_bytes'] / 1e6:.1f} MB; a working copy of the matrices in bfloat16 adds "
          f"{found['working_copy_bytes'] / 1e6:.1f} MB")
    for name in STRATEGIES:
        print(f"{name:16s} arena {found['arena_bytes'][name] / 1e6:7.1f} MB, total {found['total_bytes'][name] / 1e6:7.1f} MB")
    for name, one in data["seconds"].items():
        print(f"{name:16s} {one['median'] * 1e3:8.2f} ms ({one['min'] * 1e3:.2f} to {one['max'] * 1e3:.2f})")
    if data["instruction"]:
        rates = data["instruction"]
        dotted = "none" if rates["bfloat16"] is None else f"{rates['bfloat16'] / 1e9:.0f} GFLOP/s"
        print(f"from registers: float32 multiply-add {rates['float32'] / 1e9:.0f} GFLOP/s, bfloat16 dot {dotted}")
    for row in data["products"]:
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in row["rate"].items())
        print(f"{row['name']:10s} {'x'.join(map(str, row['shape'])):14s} GFLOP/s: {rates}")
        print(f"{'':25s} time against cllm product: {', '.join(f'{name} {text}' for name, text in row['text'].items())}")


if __name__ == "__main__":
    sys.exit(main())
