"""What ``cllm compare`` runs, measures and draws.

`job` says what is trained, `worker` trains it under one strategy in a fresh process, `runner` takes the rounds in
turn, `summary` folds the runs into one row a strategy, `picture` draws the rows. `resident` and `machine` read the
system.
"""
