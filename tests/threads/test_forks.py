"""A forked child computes the right bits, or says at once why not; it never hangs.

Each scenario is a program of its own, killed after `SECONDS`: what hangs fails. Its children are killed sooner.
"""
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import cllm
from cllm.planner import disks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
SECONDS = 60

BEGINNING = """
import hashlib, multiprocessing, os, signal, sys, threading, time, warnings
import numpy as np
import cllm
from cllm import _kernels as kernels

CONFIG = cllm.ModelConfig(17, 2, 64, 4, 256, 32, dropout=0.1)
TOKENS, TARGETS = np.random.default_rng(0).integers(0, 17, (2, 2, 32))


def new(strategy="cache", num_threads=3):
    model = cllm.GPT(CONFIG)
    return model, cllm.Executor(model, 2, 32, strategy=strategy, num_threads=num_threads)


def step(model, ex):
    "Everything public that runs kernels, as one digest."
    ex.step = 0
    model.zero_grad()
    seen = [ex.loss_and_grad(TOKENS, TARGETS), ex.loss(TOKENS, TARGETS), cllm.clip_grad_norm(model, 1e9)]
    seen.extend(cllm.generate(model, [1, 2, 3], 5, num_threads=3).tolist())
    seen.append(float(ex.logits(TOKENS).sum()))
    x = np.arange(64 * 128, dtype="float32").reshape(128, 64) % 7
    seen.append(float(cllm.accumulate_weight_gradient(x, x, np.zeros((64, 64), "float32"), num_threads=3).sum()))
    found = hashlib.sha256(repr(seen).encode())
    for gradient in model.gradients.values():
        found.update(gradient.tobytes())
    return found.hexdigest()


def forked(work):
    "What work() returns in a child."
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(20)  # a child that hangs is killed
            os.write(writer, work().encode())
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"
    return said
"""


def run(program, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-W", "ignore::DeprecationWarning", "-c", BEGINNING + textwrap.dedent(program),
                                *map(str, arguments)], text=True, stderr=subprocess.PIPE, env=environment,
                               start_new_session=True)
    try:
        said = process.communicate(timeout=SECONDS)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with all its children
        process.communicate()
        pytest.fail(f"hangs: after {SECONDS} s it had not ended")
    assert process.returncode == 0, said


def test_child_after_the_parent_computed():
    run("""
        model, ex = new()
        expected = step(model, ex)
        assert forked(lambda: step(model, ex)) == expected
        assert forked(lambda: forked(lambda: step(*new()))) == expected, "a child's child"
        assert step(model, ex) == expected, "the parent goes on"
        optimizer = cllm.AdamW(model)
        def train():
            optimizer.step()
            return step(model, ex)
        theirs = forked(train)
        assert train() == theirs
        plain = cllm.GPT(cllm.ModelConfig(17, 1, 16, 2, 16, 32))
        assert forked(lambda: str(cllm.gradcheck(plain, TOKENS, TARGETS, elements=1).passed)) == "True"
    """)


def test_pools_of_processes_that_are_forked():
    run("""
        model, ex = new()
        expected = step(model, ex)
        def work(_):
            signal.alarm(20)
            return step(model, ex)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(work, range(4)) == [expected] * 4
        assert step(model, ex) == expected
    """)


def test_a_fork_by_another_thread_than_the_one_that_computed():
    run("""
        model, ex = new()
        expected, seen = step(model, ex), []
        thread = threading.Thread(target=lambda: seen.append(forked(lambda: step(model, ex))))
        thread.start()
        thread.join()
        assert seen == [expected] and step(model, ex) == expected
        other = threading.Thread(target=lambda: seen.append(step(*new())))  # computes, and is gone
        other.start()
        other.join()
        assert seen[1] == expected and forked(lambda: step(model, ex)) == expected
    """)


def test_a_fork_while_other_threads_are_within_a_step():
    """Locks that they hold, and the runtime's threads that work for them, are not the child's."""
    run("""
        model, ex = new()
        expected, stop, errors = step(model, ex), threading.Event(), []
        def work():
            mine = new()
            try:
                while not stop.is_set():
                    ex.loss(TOKENS, TARGETS)
                    assert step(*mine) == expected
                    ex.loss_and_grad(TOKENS, TARGETS)
            except BaseException as error:
                errors.append(error)
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for k in range(25):
            assert forked(lambda: step(model, ex)) == expected, k
        stop.set()
        for thread in threads:
            thread.join()
        assert not errors, errors
    """)


def test_a_fork_from_within_a_step():
    """As a layer in Python may do; the child uses what is not in use."""
    run("""
        model, ex = new()
        expected, seen = step(model, ex), []
        calls = ex._bound(2)
        ex._calls["train", 2] = [*calls[:5], lambda: seen.append(forked(lambda: step(*new()))), *calls[5:]]
        assert step(model, ex) == expected and seen == [expected]
        del ex._calls["train", 2]
        def refused():
            try:
                ex.loss(TOKENS, TARGETS)
            except cllm.ConfigError as error:
                return str(error)
        ex._calls["train", 2] = [*ex._bound(2)[:5], lambda: seen.append(forked(refused)), *calls[5:]]
        assert step(model, ex) == expected and "from within a step of its own" in seen[1]
    """)


def test_a_runtime_that_cannot_be_forked_is_used_serially_and_says_so_once():
    run("""
        kernels.before_fork = lambda: False
        model, ex = new()
        expected = step(model, ex)
        def work():
            kernels.before_fork = lambda: True
            assert kernels.get_threads() == 1
            with kernels.Threads(3):
                assert kernels.get_threads() == 1
            return step(model, ex)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            def counted():
                found = work()
                ours = [w for w in said if "cannot be forked" in str(w.message)]
                assert len(ours) == 1 and ours[0].category is RuntimeWarning
                return found
            assert forked(counted) == expected
        with kernels.Threads(3):
            assert kernels.get_threads() == 3, "the parent is as it was"
    """)


def test_spilled_values_of_parent_and_child_do_not_meet(tmp_path):
    if disks.file_system(tmp_path) in disks.MEMORY_BACKED:
        pytest.skip("the temporary directory lies in memory")
    run("""
        model, ex = new(cllm.Spill(sys.argv[1]))
        expected, stop, errors = step(model, ex), threading.Event(), []
        def many():
            for _ in range(10):
                assert step(model, ex) == expected
            return expected
        def beside():
            try:
                while not stop.is_set():
                    ex.loss_and_grad(TOKENS, TARGETS)
            except BaseException as error:
                errors.append(error)
        thread = threading.Thread(target=beside)
        thread.start()
        for _ in range(5):
            assert forked(many) == expected
        stop.set()
        thread.join()
        assert not errors and many() == expected
    """, tmp_path)


def test_a_step_that_spills_cannot_be_ended_in_a_child(tmp_path):
    if disks.file_system(tmp_path) in disks.MEMORY_BACKED:
        pytest.skip("the temporary directory lies in memory")
    run("""
        model, ex = new(cllm.Spill(sys.argv[1]))
        expected = step(model, ex)
        parent, calls = os.getpid(), ex._bound(2)
        kinds = [op.kind for op in ex.schedule.ops]
        for kind in ("spill_start", "spill_wait", "fetch_start", "fetch_wait"):
            at = kinds.index(kind)
            def fork():
                if os.fork() == 0:
                    signal.alarm(20)
                else:
                    os.wait()
            ex._calls["train", 2] = [*calls[:at], fork, *calls[at:]]
            try:
                found = step(model, ex)
                assert os.getpid() == parent and found == expected
            except cllm.SpillError as error:
                right = os.getpid() != parent and "must end in the process where it began" in str(error)
                ex._calls["train", 2] = calls
                os._exit(0 if right and step(model, ex) == expected else 3)  # the next step is the child's own
    """, tmp_path)
