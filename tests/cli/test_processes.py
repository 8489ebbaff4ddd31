"""What commands that train ask all processes before anything is made."""
import click
import numpy as np
from team import processes

import cllm
from cllm.cli.processes import budget_for, state_in
from cllm.errors import BudgetError, ConfigError, PlanError
from cllm.models.excerpt import Used
from cllm.planning import plan
from cllm.program.workload import Workload
from cllm.train import Trainer, TrainSettings
from cllm.train.keeper import Keeper

CONFIG = cllm.ModelConfig(256, 1, 32, 2, 64, 16)


def asked(team, config=CONFIG, **settings):
    """The budget, or the error, of a run that would begin."""
    wanted = TrainSettings(**{"batch_size": 4, "seq_len": 16, "groups": 2, "threads": 1, **settings})
    work = Workload(4, 16, threads=1)

    def decide(strategy):
        return plan(config, 4, 16, strategy, num_threads=1, processes=team.size, **wanted.whole_step())

    return budget_for(wanted, team, work, Used.of(config), False, decide)


def test_processes_that_were_asked_for_different_runs_are_told():
    for change, words in ((dict(lr=1.0), "lr 1.0 and 0.001"), (dict(groups=4), "groups 4 and 2"),
                          (dict(memory_budget="1GB"), "memory_budget '1GB' and None"),
                          (dict(config=cllm.ModelConfig(256, 2, 32, 2, 64, 16)), "model '")):
        for one in processes(2, lambda team, change=change: asked(team, **(change if team.rank else {}))):
            assert isinstance(one, ConfigError) and "run: must be the same in all processes" in str(one) and words in str(one)
    assert processes(2, lambda team: asked(team, threads=1 + team.rank)) == [None, None]


def test_what_cannot_be_had_is_refused_by_all(tmp_path):
    for change, kind, words in ((dict(memory_budget="10kB"), BudgetError, "must be at least"),
                                (dict(states=f"disk:{tmp_path}"), PlanError, "must be 'memory' where several processes"),
                                (dict(groups=1), ConfigError, "a power of two that divides groups = 1; got 2")):
        for one in processes(2, lambda team, change=change: asked(team, **change)):
            assert type(one) is kind and words in str(one)


def test_processes_go_on_from_the_same_snapshot(tmp_path):
    settings = dict(steps=1, batch_size=2, seq_len=8, threads=1, val_fraction=0)
    Trainer(cllm.GPT(CONFIG), np.arange(200) % 256, tmp_path / "run", **settings).run()

    def found(team, command="train", out="run"):
        with click.Context(click.Command(command), info_name=command):
            return state_in(Keeper(tmp_path / out), True, team)

    assert [state["step"] for state in processes(2, found)] == [1, 1]
    for change, words in ((dict(command="finetune"), "command 'finetune' and 'train'"),
                          (dict(out="none"), "snapshot None and 'step-000001'")):
        for one in processes(2, lambda team, change=change: found(team, **(change if team.rank else {}))):
            assert isinstance(one, ConfigError) and words in str(one)
