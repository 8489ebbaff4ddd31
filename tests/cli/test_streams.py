"""Standard input, output and error: pipes, encodings, JSON that can be piped, text that comes through a pipe."""
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from longer import whole

import cllm
from cllm.cli import main

TINY = ["--preset", "tiny", "--layers", "1", "--d-model", "16", "--heads", "2", "--d-ff", "32", "--batch-size", "2",
        "--seq-len", "16", "--threads", "1"]
TRAIN = [*TINY, "--eval-every", "2", "--eval-batches", "1", "--steps", "2"]


def cllm_command(*arguments, code=0, env=None, **more):
    env = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parent.parent), **(env or {})}
    done = subprocess.run([sys.executable, "-m", "cllm", *map(str, arguments)], env=env, capture_output=True, timeout=120,
                          check=False, **more)
    assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


def here(*arguments, code=0, **more):
    """The command within this process: where what comes out matters, not whose streams it goes through."""
    done = CliRunner().invoke(main, [*map(str, arguments)], **more)
    assert done.exit_code == code and (done.exception is None or code), done.output
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    here("train", *TRAIN, "--out", out)
    return out


NARROW = {"ascii": ["train", *TRAIN, "--sample-every", "1", "--out"],
          "latin-1": ["sample", "--tokens", "20", "--temperature", "3", "--prompt", "caf\u00e9 \u2713"]}


@pytest.mark.parametrize("encoding", NARROW)
def test_output_in_a_narrow_encoding(encoding, trained, tmp_path):
    env, own = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}, tmp_path / "r\u00fcn\u2713"
    out = cllm_command(*NARROW[encoding], own if encoding == "ascii" else trained, env=env).stdout
    out.decode("utf-8" if encoding == "ascii" else encoding)  # click takes ASCII for a mistake of the system's


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_of_every_command_in_a_narrow_encoding(encoding, trained, tmp_path, monkeypatch):
    for arguments in (NARROW["latin-1"] + [str(trained)], ["info"], ["memory", *TINY],
                      [*NARROW["ascii"], str(tmp_path / "r\u00fcn\u2713")]):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding))
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0 and out.getvalue()


def test_a_reader_that_has_enough_ends_a_command_quietly(trained):
    """cllm sample | head: no traceback, no complaint on the way out."""
    env = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parent.parent)}
    for arguments in (["sample", str(trained), "--tokens", "100000"], ["memory", *TINY]):
        process = subprocess.Popen([sys.executable, "-m", "cllm", *arguments], env=env, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        if arguments[0] == "sample":
            assert process.stdout.read(5)
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        assert process.wait(60) in (0, 1) and err == b"", err


@pytest.mark.parametrize("arguments", [["plan", *TINY], ["memory", *TINY], ["info"], ["plan", *TINY, "--pareto"],
                                       ["gradcheck", *TINY[:-6], "--elements", "1"]], ids=" ".join)
def test_json_on_standard_output_is_json_alone(arguments, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json", "-"])
    done = capfd.readouterr()  # of the descriptors: what compiled code writes is seen too
    assert not ended.value.code and json.loads(done.out) and done.err.strip() and not list(tmp_path.iterdir())


def test_json_of_a_run_and_of_a_sample_on_standard_output(tmp_path):
    done = here("train", *TRAIN, "--out", tmp_path / "run", "--json", "-")
    assert json.loads(done.stdout)["step"] == 2 and "finished: 2 steps" in done.stderr
    done = here("sample", tmp_path / "run", "--tokens", 3, "--json", "-")
    assert len(json.loads(done.stdout)["tokens"]) == 3
    done = cllm_command("compare", *TINY, "--strategies", "cache", "--steps", 1, "--rounds", 1, "--json", "-")
    assert json.loads(done.stdout)["rows"][0]["strategy"] == "cache" and b"gradient digest" in done.stderr


def test_a_prompt_from_standard_input(trained):
    text = b"It is \xff a truth"
    out = cllm_command("sample", trained, "--prompt", "-", "--tokens", 3, "--json", "-", input=text).stdout
    assert json.loads(out)["prompt"].encode(errors="surrogateescape") == text
    model = cllm.load(next(trained.glob("step-*")) / "model.safetensors")
    assert json.loads(out)["tokens"] == cllm.generate(model, list(text)[-16:], 3, temperature=0.8).tolist()


@pytest.mark.parametrize("tokenizer", [[], ["--tokenizer", "bpe:270"]], ids=["bytes", "bpe"])
def test_text_through_a_pipe(tokenizer, tmp_path):
    if tokenizer:
        pytest.importorskip("tokenizers", reason="needs the extra io")
    text = b"It is a truth universally acknowledged\n" * 3000
    out = tmp_path / "run"
    cllm_command("train", *TRAIN, "--out", out, "--text", "/dev/stdin", *tokenizer, input=text)
    here("train", *TRAIN, "--out", out, "--resume", "--steps", 3, *tokenizer, input=b"")
    assert len(list(out.glob("step-*"))) == 2
    if tokenizer:
        assert here("sample", out, "--prompt", "It is", "--tokens", 3).stdout.startswith("It is")
    else:
        assert cllm.corpus.open_tokens(out / "tokens.bin").tokens.tobytes() == text


def test_the_version():
    done = cllm_command("--version")
    assert done.stdout.decode().split() == ["cllm", cllm.versions()["cllm"]]


def test_limits_are_spelled_alike_in_a_strategy():
    plans = [json.loads(here("plan", *TINY, "--strategy", f"budget:{spelled}", "--json", "-").stdout)["plan"]
             for spelled in ("5000000B", "5000000", "5MB", "5M", "0.005G")]
    assert all(plan == plans[0] for plan in plans)


@pytest.mark.parametrize("limit", ["5000000", whole("5MB"), whole("5M"), "0.005G"])
def test_limits_are_spelled_alike_in_an_option(limit, tmp_path):
    result = here("train", *TRAIN, "--memory-budget", limit, "--no-calibrate", "--out", tmp_path / limit, "--json", "-")
    assert json.loads(result.stdout)["budget_bytes"] == 5_000_000


def test_streams_that_cannot_be_set_up_are_left(monkeypatch):
    """A program that calls the command line with streams of its own."""
    class Plain:
        encoding = "utf-8"

        def write(self, text):
            pass

        def flush(self):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Plain())
    with pytest.raises(SystemExit) as ended:
        main(["info"])
    assert ended.value.code in (0, 1)
