"""The lesson: why shortcuts help, on data that were recorded; one source for every page of it."""
