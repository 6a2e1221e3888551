"""Many recorded runs by one plan: what is to be run, and the processes that run it."""
