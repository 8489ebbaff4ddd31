"""``cllm finetune``: a model of other people's on examples, whole or by adapters, inside a memory budget."""

from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

import click

from cllm.cli.options import calibrate_option, json_option, patterns_in
from cllm.cli.processes import budget_for, leads, state_in, with_processes
from cllm.cli.training import (
    CONTINUED_RATE,
    checked_plot,
    run_and_tell,
    settings_in,
    settings_options,
    watchers,
    watching_options,
)
from cllm.cli.tuning_plan import plan_in_words
from cllm.errors import ConfigError
from cllm.finetuning import FineTuningData
from cllm.models.adapted import Adapted, trained_of
from cllm.models.adapters import TRAINED, with_adapters
from cllm.models.architecture import Architecture
from cllm.models.choosing import described_at, forms_at, is_files, model_at
from cllm.models.excerpt import Used
from cllm.models.families import architecture_of, model_of
from cllm.models.model import Model
from cllm.optim import optimizer_kind
from cllm.planning import decide, ledger_of
from cllm.pretrained import Speech
from cllm.program.parts import StoredForm
from cllm.program.workload import Workload
from cllm.tokenizer import ByteTokenizer
from cllm.train import Trainer, TrainSettings
from cllm.train.keeper import Keeper

ADAPTER_RATE = 2e-4  # usual for LoRA; all weights take CONTINUED_RATE
EVALUATIONS = 10  # of a run, unless said otherwise
BATCH, TIME = 4, 512  # unless given
OF_ADAPTERS = {"alpha": 16.0, "targets": ("q", "v"), "rslora": False, "dropout": 0.0}
OF_DATA = {"batch_size": BATCH, "seq_len": TIME, "packing": True, "turns": "all"}
WITHOUT = ("batch_size", "seq_len", "accumulate", "val_fraction", "sample_prompt")
WORDS = {
    "steps": "Steps of the whole run, in place of --epochs; a longer run may be asked for when resuming.",
    "lr": f"Highest learning rate; {ADAPTER_RATE:g} with --lora, else {CONTINUED_RATE:g}, unless given.",
    "seed": "Of the adapters, the order of the examples, and dropout.",
    "eval_every": f"Steps between evaluations on --valid; so that there are {EVALUATIONS}, unless given.",
    "snapshot_every": "Steps between snapshots; as --eval-every unless given.",
    "sample_every": "Steps between answers to the first example of --valid, or of --data.",
}


@dataclass(slots=True)
class Job:
    """What a run is, said by the command line or by the snapshot with which it goes on."""

    place: Path
    architecture: Architecture
    trainable: tuple[str, ...] | None
    data: FineTuningData
    valid: FineTuningData | None

    @property
    def is_adapted(self) -> bool:
        return isinstance(self.architecture, Adapted)

    @property
    def base(self) -> Architecture:
        return self.architecture.base if self.is_adapted else self.architecture

    def model(self, seed: int | None, mapped: bool) -> Model:
        """The base's weights, and adapters begun from a seed, or zero."""
        trained = trained_of(self.architecture, self.trainable)
        mapped = mapped and trained is not None
        if not self.is_adapted:
            return model_at(self.place, "float32", self.base, trained, mapped)
        made = with_adapters(model_at(self.place, "float32", self.base, trained, mapped), self.architecture, seed)
        made.trainable = self.trainable
        return made

    def forms(self, mapped: bool) -> dict[str, StoredForm]:
        """How its frozen matrices will be stored."""
        return forms_at(self.place, self.base, trained_of(self.architecture, self.trainable)) if mapped else {}


@click.command("finetune")
@click.option("--model", "place", type=click.Path(exists=True, path_type=Path), default=None, metavar="DIR|FILE",
              help="What to tune: a directory with config.json and safetensors, a GGUF file, or a file that model.save wrote.")
@click.option("--data", "files", type=click.Path(path_type=Path), multiple=True, metavar="FILE.jsonl",
              help="Examples, a JSON object a line (text; prompt and completion; messages; instruction and output); again for "
                   "more files.")
@click.option("--valid", type=click.Path(path_type=Path), multiple=True, metavar="FILE.jsonl",
              help="Examples to validate on.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Directory for snapshots and metrics.")
@click.option("--resume", is_flag=True, help="Go on from the latest snapshot in --out, as it began; without one, start.")
@click.option("--lora", "rank", type=int, default=None, metavar="RANK",
              help="Train adapters of this rank and freeze the rest; without it, all weights or --trainable are tuned.")
@click.option("--alpha", type=float, default=None, show_default="16", help="Adapters are scaled by alpha / rank.")
@click.option("--targets", default=None, show_default="q,v", metavar="A,B,...",
              help="What is adapted: q, k, v, o, gate, up, down, all, names of steps or modules, or patterns.")
@click.option("--rslora/--no-rslora", default=None, help="Scale by alpha / sqrt(rank).")
@click.option("--dropout", type=float, default=None, show_default="0", help="Of what adapters read.")
@click.option("--tokenizer", default=None, show_default="that beside the model",
              help="bytes, or a directory or GGUF file whose tokenizer and chat template are taken.")
@click.option("--batch-size", type=int, default=None, show_default=str(BATCH), help="Rows of a step, B.")
@click.option("--seq-len", type=int, default=None, show_default=str(TIME),
              help="Longest row in tokens, T; longer examples are cut.")
@click.option("--packing/--no-packing", default=None, show_default="packing",
              help="Rows of as many examples as fit, or of one each, padded.")
@click.option("--turns", type=click.Choice(["all", "last"]), default=None, show_default="all",
              help="Answers of a chat that are trained on.")
@click.option("--epochs", type=float, default=None, show_default="1", help="Passes over the examples, in place of --steps.")
@click.option("--mapped/--copied", default=None, show_default="mapped where weights are frozen",
              help="Read frozen weights from their file, in the dtype or blocks that it has, which runs then share; or copy "
                   "and expand them first.")
@click.option("--show-examples", "shown", type=click.IntRange(0), default=0, metavar="N",
              help="First print the first N examples: each token, and whether it is trained on.")
@settings_options(WITHOUT, WORDS)
@watching_options
@calibrate_option
@json_option
@with_processes
def command(team, place, files, valid, out, resume, rank, tokenizer, epochs, mapped, shown, quiet, plot, measure, json_path,
            **options):
    """Tune a model on examples of what it is to say.

    Prints what is frozen, what is trained, what will be kept and what all of it takes, before it starts. With --lora or
    --trainable, snapshots hold what is trained, and the place and digest of the rest. Ctrl-C, a closed terminal, a full disk:
    the run ends with a snapshot; --resume goes on to the bit. Under mpirun the processes share the --groups of each batch, to
    the same bits for any number of them.
    """
    checked_plot(plot)
    settings = settings_in(options, WITHOUT)
    if epochs is not None and ("steps" in settings or "hours" in settings):
        raise click.UsageError("--epochs, --steps and --hours say the same: give one")
    if epochs is not None and not epochs > 0:
        raise click.UsageError("--epochs must be above 0")
    given = {name: value for name, value in options.items() if value is not None}
    if mapped and rank is None and "trainable" not in settings and not resume:
        raise click.UsageError("--mapped is of frozen weights: give --lora or --trainable as well")
    mapped = mapped is not False
    if "targets" in given:
        given["targets"] = patterns_in(given["targets"])
    state = state_in(Keeper(out), resume, team)
    if state is None:
        job = _begun(place, files, valid, rank, tokenizer, settings, given)
    else:
        job = _resumed(out, state, place, files, valid, rank, tokenizer, settings, given)
    if epochs is not None or state is None and not {"steps", "hours"} & set(settings):
        settings["steps"] = max(1, ceil((epochs or 1.0) * len(job.data)))
    if state is None:
        settings.setdefault("lr", ADAPTER_RATE if job.is_adapted else CONTINUED_RATE)
        settings.setdefault("eval_every", max(1, settings.get("steps", TrainSettings().steps) // EVALUATIONS))
        settings.setdefault("snapshot_every", settings["eval_every"])
    if shown:
        click.echo(f"{job.data.show(shown)}\n")
    budget = None
    if state is None:
        wanted = TrainSettings(**settings)
        work = Workload(job.data.batch_size, job.data.seq_len, "float32", optimizer_kind(wanted.optimizer), wanted.threads)
        whole = wanted.whole_step()
        ledger = ledger_of(job.architecture, work.batch, work.time, work.optimizer, "float32", work.threads,
                           trainable=job.trainable, packed=job.data.packing, clip_by=whole["clip_by"], compute=wanted.compute,
                           stored=job.forms(mapped), groups=wanted.groups, processes=1 if team is None else team.size)
        budget = budget_for(wanted, team, work, Used.of(job.architecture, job.trainable, wanted.compute), measure,
                            partial(decide, ledger=ledger, states=whole["states"],
                                    update_in_backward=whole["update_in_backward"]))
    if state is None or state.get("base") is not None:
        model = job.model(settings.get("seed", 0), mapped)
    else:  # the snapshot has all of it
        model = model_of(job.architecture, None, "float32", job.trainable)
    trainer = Trainer(model, out=out, resume=resume, data=job.data, eval_data=job.valid, base=job.place, budget=budget,
                      callbacks=watchers(quiet, plot), team=team, **settings)
    click.echo(plan_in_words(trainer, job.place))
    chat = "" if job.data.speech.form is None else " --chat"
    merge = f"\n  cllm merge {out} DIRECTORY" if job.is_adapted else f"\n  cllm export {out} DIRECTORY"
    run_and_tell(trainer, json_path if leads(team) else None, f"cllm finetune --out {out} --resume",
                 f"cllm sample {out}{chat} --prompt ...{merge}",
                 {"trained": sum(model.parameters[name].size for name in model.program.trained),
                  "examples": len(job.data.examples), "targets": job.data.targets})


def _begun(place: Path | None, files, valid, rank: int | None, tokenizer: str | None, settings: dict, given: dict) -> Job:
    """The job of a run that begins; what can be refused by headers and examples alone is refused here."""
    for name, value in (("--model", place), ("--data", files)):
        if not value:
            raise click.UsageError(f"{name} is missing: a run begins with a model and examples")
    architecture = described_at(place)
    adapters = {name: given[name] for name in OF_ADAPTERS if name in given}
    if rank is not None:
        architecture = Adapted(architecture, rank, **adapters)
    elif adapters:
        raise click.UsageError(f"--{next(iter(adapters))} is of adapters: give --lora RANK as well")
    trainable = settings.get("trainable", TRAINED if rank is not None else None)
    speech = _speech(tokenizer, place)
    how = {name: given.get(name, usual) for name, usual in OF_DATA.items()} | {"seed": settings.get("seed", 0)}
    if "seq_len" not in given:
        how["seq_len"] = min(TIME, architecture.program.longest or TIME)
    data = FineTuningData(files, speech, **how)
    return Job(place, architecture, trainable, data, FineTuningData(valid, speech, **how, evaluation=True) if valid else None)


def _resumed(out: Path, state: dict, place: Path | None, files, valid, rank: int | None, tokenizer: str | None, settings: dict,
             given: dict) -> Job:
    """The job of a run that goes on; options that ask for another one are refused."""
    kept = state["training"]["data"].get("data")
    if kept is None:
        raise ConfigError(f"resume of {out}", "must be a run that cllm finetune began", "one of another kind",
                          "Use cllm train --resume, or choose another directory.")
    architecture = architecture_of(state)
    is_adapted = isinstance(architecture, Adapted)
    there = {"lora": architecture.rank if is_adapted else None,
             **{name: getattr(architecture, name, None) for name in OF_ADAPTERS}, **{name: kept[name] for name in OF_DATA}}
    asked = {**({} if rank is None else {"lora": rank}), **given}
    differ = [f"{name} {there[name]!r} there, {value!r} now" for name, value in asked.items() if there[name] != value]
    if differ:
        raise ConfigError(f"resume of {out}", "must go on with the model and examples it began with", ", ".join(differ),
                          "Leave these options out, or start afresh in another directory.")
    if place is None:
        found = (state.get("base") or {}).get("place") or (state.get("source") or {}).get("directory")
        place = out if found is None else Path(found)
    named = "bytes" if state["training"]["data"]["tokenizer"] == "bytes" else kept["speech"]
    speech = _speech(tokenizer or (named if named == "bytes" or Path(named).exists() else None), place)
    how = {name: kept[name] for name in (*OF_DATA, "seed")}
    other = state["training"]["data"].get("eval_data")
    held_back = valid or (other["files"] if other else ())
    trainable = settings.get("trainable", state.get("trainable"))
    return Job(place, architecture, None if trainable is None else tuple(trainable),
               FineTuningData(files or kept["files"], speech, **how),
               FineTuningData(held_back, speech, **how, evaluation=True) if held_back else None)


def _speech(named: str | None, place: Path) -> Speech:
    """What makes tokens of examples."""
    if named == "bytes":
        return Speech("bytes", ByteTokenizer())
    if named is None and not is_files(place):
        raise ConfigError(f"cllm finetune --model {place}", "must have a tokenizer beside it", "a file of ours, which has none",
                          "Name one: --tokenizer DIRECTORY, of the model that it was, or --tokenizer bytes.")
    return Speech.beside(place if named is None else named)
