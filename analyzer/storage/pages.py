"""The pages of the documentation that follow from the schema; ``docs/generated.py`` uses them."""

from collections.abc import Sequence

import pyarrow as pa

from analyzer.storage.bin_writer import MAX_BINS
from analyzer.storage.run_json import FIELDS
from analyzer.storage.schema import EDGES, SCHEMA_VERSION, STATIC_TABLES, STEP_TABLES, TABLES
from analyzer.storage.schema import PROBES as PROBE_SCHEMAS
from analyzer.vocabulary import RULES, Quantity, quantities_of
from analyzer.vocabulary.probes import PROBES

__all__ = ["as_markdown", "schema_page", "vocabulary_page"]

_LAYOUT = """\
```
runs/<run>/
  run.json                   the manifest
  layers.parquet             static tables: whole files, replaced when new calls appear
  parameters.parquet
  joins.parquet
  edges.parquet
  steps/<part>.parquet       rows of steps: many small parts while running, few at the end
  layer_stats/<part>.parquet
  parameter_stats/<part>.parquet
  splits/<part>.parquet
  probes/<name>/step-<12 digits>.parquet
  overview/<table>/<start>-<end>.w<width>.parquet
  checkpoints/step-<12 digits>.safetensors
  ranks/a<attempt>.json
  ranks/a<attempt>.leader
  ranks/a<attempt>.r<rank>.json
  ranks/a<attempt>.r<rank>.<static table>.parquet
```"""
_READING = f"""\
A part is named `<first step>-<last step>.r<rank>.a<attempt>.p<first flush>-<last flush>.parquet`,
steps in 12 digits. Every file appears under its name by one atomic rename; names that begin with a
dot are unfinished. Merging parts gives one whose flushes contain theirs: **a part whose flushes lie
inside those of another part of the same rank and attempt MUST NOT be read**, then every row is read
once at each moment. Where several attempts hold a step, the newest has it, and the rows of the
others stay (`ranks="all"` reads them all from `steps`). A probe or checkpoint that a later attempt
writes once more is kept beside it as `attempt-<k>-step-<12 digits>`. Parts of `steps` may differ in
what was logged; a reader widens types (bool, int64, float64, string) and takes null for what is
missing. Null is "not measured", NaN is a measured value.

Pages of a file have checksums, and its metadata say under `place` where it lies in the run: of
two parts whose names were exchanged, each is what its `place` says. Between the last page and the
footer of such a file stand `GFlowS1` and a line feed, the CRC-32 of all bytes before the footer
(0 in files over 4 MiB) and the CRC-32 of all bytes from the footer on, 4 bytes each,
little-endian. Earlier files have none of these. The flushes of a rank and attempt are numbered
from 0 without gaps.

An overview file holds the bins of the steps from `start` to before `end`, `width` steps a bin, of
a run of one process: `start`, the id, `num_rows`, and for each numeric column its `_min`, `_mean`
and `_max` over the finite values, `_num_finite`, and `_num_nonfinite` (NaN or infinite; nulls are
neither). A file whose steps lie inside another's MUST NOT be read. There are at most {MAX_BINS}
bins, and at least {MAX_BINS // 2} once the run has as many steps. A table of few rows has no
overview, and what no overview file holds is in the table.

Of several ranks each has a file `ranks/a<attempt>.r<rank>.json` with the fields of `run.json` that
it knows of itself; one of them, in `a<attempt>.leader`, writes `run.json` and the tables at the
top. The others have static tables of their own: an id in their rows is one of those tables, and
means what has the same name in the table at the top; a name that is not there comes after its last
row. So it is where a later attempt met layers in another order."""


def as_markdown(schema: pa.Schema) -> str:
    """Return the columns of a table as a Markdown table; ``?`` marks those that may be null."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for field in schema:
        notes = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        type_ = f"{field.type}{'?' if field.nullable else ''}"
        cells = (f"`{field.name}`", type_, notes.get("unit", ""), notes.get("description", ""))
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines)


def schema_page() -> str:
    """Return the page that describes a run folder."""
    blocks = [f"# The run folder, schema version {SCHEMA_VERSION}", _LAYOUT, _READING]
    blocks += ["## run.json", _manifest_table()]
    for name in (*STATIC_TABLES, EDGES, *STEP_TABLES):
        blocks += [f"## {name}", as_markdown(TABLES[name])]
    for name, schema in PROBE_SCHEMAS.items():
        blocks += [f"## probes/{name}", as_markdown(schema)]
    return "\n\n".join(blocks) + "\n"


def _manifest_table() -> str:
    rows = [f"| `{key}` | {type_} | {meaning} |" for key, (type_, meaning) in FIELDS.items()]
    return "\n".join(["| field | type | meaning |", "|---|---|---|", *rows]) + (
        "\n\nA field of another type is not read, and named as damaged; other fields are kept as "
        "they are. All of them are data, and no path in them is opened."
    )


def vocabulary_page() -> str:
    """Return the page that lists every quantity and every probe."""
    lines = ["# Vocabulary", "How the values of parts become that of the whole step:"]
    lines.append("\n".join(f"- *{rule}*: {meaning}." for rule, meaning in RULES.items()))
    for table in STEP_TABLES:
        lines += [f"## {table}", _quantity_table(quantities_of(table))]
    lines += ["## Probes", "\n".join(f"- `{probe.name}`: {probe.sentence}" for probe in PROBES)]
    return "\n\n".join(lines) + "\n"


def _quantity_table(rows: Sequence[Quantity]) -> str:
    heads = ("key", "label", "unit", "scale", "definition", "batches", "ranks", "shards", "source")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        rules = (row.pooling.batches, row.pooling.ranks, row.pooling.shards or "")
        cells = (f"`{row.key}`", row.label, row.unit, row.scale, row.description, *rules)
        lines.append("| " + " | ".join(_cell(cell) for cell in (*cells, row.source)) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")
