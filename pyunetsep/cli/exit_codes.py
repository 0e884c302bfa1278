"""What the exit codes mean."""

DONE = 0
SOME_FAILED = 1  # an input, or a file or disk
USAGE = 2
MODEL_OR_DEVICE = 3
INTERRUPTED = 130
