"""Run folders: one schema, one writer, one reader."""
