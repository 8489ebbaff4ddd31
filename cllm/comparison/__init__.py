"""What ``cllm compare`` runs, measures and draws.

`job` says what is trained, `worker` trains it under one strategy in a fresh process, `runner` takes the rounds in
turn, `summary` folds the runs into one row a strategy; `experiment` does so for each point of a sweep. `description`
has plans and timelines as data, `first_gradients` how far inexact gradients are off, `budgets` those from least to
most, `peers` the points of PyTorch. `picture`, `curve` and `sweeps` draw with matplotlib what `html` has as a page; `series`,
`axes` and `labels` say what memory against time shows, and where, for both.
`resident` and `machine` read the system.
"""
