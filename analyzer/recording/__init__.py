"""Recording of a training while it runs: cheap, and without a trace in the program."""
