"""Training: recordings -> examples -> networks, one step after the other -> a model.

`config` says what a run is; `sampling` draws its examples and `augmentation` makes their waves, both joined in
`examples`; `trainer` steps; `run` does all of it in order, and keeps `state` and `reports` in the run's folder.
"""
