"""The command line: one Typer application whose commands are loaded when they are called.

A command is a public function that ``COMMANDS`` names, with annotated parameters
(``Annotated[int, typer.Option("--every", help=...)]``). Its docstring is the help page: a sentence,
and a paragraph that begins with ``Example:``. Its module imports ``typer`` and the standard library
at its top and everything else inside the function. A command returns its exit code, or None for 0,
and raises ``AnalyzerError`` for what the user must change.
"""

import itertools
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import analyzer
from analyzer.errors import AnalyzerError
from analyzer.texts import escaped

__all__ = ["COMMANDS", "AsJson", "RunName", "RunsDir", "app", "main"]

# A message may quote what a file or an argument holds.
_MOST_LETTERS = 50_000

COMMANDS: dict[str, tuple[str, str]] = {
    "record": (
        "record:record",
        "Run a training script, or train a model file, under the recorder.",
    ),
    "demo": ("demo:demo", "Train plain and residual twins on embedded data."),
    "runs": ("reading:runs", "List runs: name, status, steps, layers, joins, loss, verdict."),
    "show": ("reading:show", "Show a run in the terminal: depth profile, joins, findings."),
    "diagnose": ("judging:diagnose", "List the findings of a run."),
    "compare": ("judging:compare", "Put two runs side by side, on a depth-relative axis."),
    "explain": ("judging:explain", "Say which mechanism separates plain and residual."),
    "probe": ("probe:probe", "Run probes on a finished run's checkpoints."),
    "study": ("study:study", "Run a sweep: depths, shortcuts, norms, widths, seeds, rates."),
    "diverge": ("judging:diverge", "Find the first step, layer and pass at which two runs differ."),
    "reproduce": ("reproduce:reproduce", "Put a published experiment beside its repetition here."),
    "dashboard": ("reading:dashboard", "Open the dashboard: where the gradient goes, live."),
    "report": ("reading:report", "Write a static report; vector figures; LaTeX tables."),
    "export": ("export:export", "Write the tables of a run as CSV files or for TensorBoard."),
}
"""Name of each command: the module in this package and its function, and one line of help."""

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, a name under --runs-dir, or latest.")
]
"""The argument ``RUN`` as every command has it."""

RunsDir = Annotated[
    Path,
    typer.Option(
        "--runs-dir",
        envvar="ANALYZER_RUNS",
        metavar="DIR",
        help="The folder that holds the runs.",
    ),
]
"""The option ``--runs-dir`` as every command has it: ``runs_dir: RunsDir = Path("runs")``."""

AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON; a number that is not finite is a text.")
]
"""The option ``--json`` as every command has it: ``json: AsJson = False``."""

# The public names for the errors of the parser end at BadParameter; what they share is above it.
_ParserError: Any = typer.BadParameter.__mro__[2]


class LazyGroup(TyperGroup):
    """A group that imports the module of a command when that command is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command called ``cmd_name``, or None where there is none."""
        return load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that ``args`` name and its defaults in ``pyproject.toml``."""
        if args[0] not in COMMANDS:
            raise AnalyzerError(_unknown_command(args[0]))
        try:
            ctx.default_map = {args[0]: defaults_for(args[0])}
        except AnalyzerError:
            # A mistake in the file must not hide the page that explains the options.
            if "--help" not in args:
                raise
        return super().resolve_command(ctx, args)


def _unknown_command(name: str) -> str:
    """Say that there is no command ``name`` and which one may be meant."""
    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"there is no command '{name}'; {hint}'analyzer --help' lists the commands."


def load(name: str) -> Any:
    """Return the parser of the command ``name``, importing its module."""
    module, _, function = COMMANDS[name][0].partition(":")
    callback = getattr(import_module(f"analyzer.cli.{module}"), function)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    page = help_page(callback)
    single.command(name, help=page, context_settings=_parsing(name))(callback)
    return typer.main.get_command(single)


def help_page(callback: Callable[..., Any]) -> str:
    """Return the help text in the docstring of a command, its example kept as it is written."""
    paragraphs = cleandoc(callback.__doc__ or "").split("\n\n")
    sections = ("Args:", "Returns:", "Raises:")
    shown = [text for text in paragraphs if not text.startswith(sections)]
    return "\n\n".join(f"\b\n{text}" if text.startswith("Example:") else text for text in shown)


def _parsing(name: str) -> dict[str, bool]:
    """Return how the arguments of the command ``name`` are read."""
    # What follows the target of a recording belongs to the script, options included.
    return {"allow_interspersed_args": False} if name == "record" else {}


def defaults_for(command: str, folder: Path | None = None) -> dict[str, Any]:
    """Return the defaults that ``pyproject.toml`` gives to the options of one command.

    ``[tool.analyzer]`` holds options that several commands share (``runs-dir = "runs"``),
    ``[tool.analyzer.record]`` those of ``record`` alone, which win. Keys are option names without
    the leading dashes; values are read as if typed on the command line.

    Args:
        command: Name of the command that is about to run.
        folder: Where the search for the file starts, upward; the working directory when None.

    Returns:
        Parameter name to value; empty without a file or a ``[tool.analyzer]`` table in it.

    Raises:
        AnalyzerError: If the file cannot be read, or names an unknown option or command.
    """
    path = _nearest(folder or Path.cwd())
    if path is None:
        return {}
    table = _table(path)
    _set_limits(path, table.pop("limits", {}))
    shared = {key: value for key, value in table.items() if not isinstance(value, dict)}
    own = table.get(command, {})
    _check_tables(path, table)
    options = _options(load(command))
    _check_shared(path, [key for key in shared if _plain(key) not in options])
    for key in own:
        if _plain(key) not in options:
            raise AnalyzerError(_unknown(path, f"tool.analyzer.{command}", key, options))
    known = {key: value for key, value in shared.items() if _plain(key) in options}
    return {options[_plain(key)]: value for key, value in (known | own).items()}


def _nearest(folder: Path) -> Path | None:
    """Return the first ``pyproject.toml`` in ``folder`` or above it."""
    candidates = (parent / "pyproject.toml" for parent in (folder, *folder.parents))
    return next((path for path in candidates if path.is_file()), None)


def _table(path: Path) -> dict[str, Any]:
    """Return the ``[tool.analyzer]`` table of a file, empty where it has none."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("analyzer", {})
    except (OSError, ValueError) as error:
        raise AnalyzerError(
            f"{path.name} cannot be read: {error}; expected TOML. "
            "Correct it, or run from a folder outside that project."
        ) from error
    if not isinstance(table, dict):
        raise AnalyzerError(
            f"{path.name}: tool.analyzer is {table!r}; expected a table. Write [tool.analyzer]."
        )
    return table


def _set_limits(path: Path, given: Any) -> None:
    """Set what may be read of one file, where the project says so."""
    if not given:
        return
    from analyzer.storage.limits import set_limits

    try:
        set_limits(dict(given))
    except (TypeError, ValueError) as error:
        raise AnalyzerError(f"{path.name}: [tool.analyzer.limits] has {error}") from error


def _check_tables(path: Path, table: dict[str, Any]) -> None:
    """Refuse a ``[tool.analyzer.NAME]`` where NAME is not a command."""
    for name, value in table.items():
        if isinstance(value, dict) and name not in COMMANDS:
            raise AnalyzerError(
                f"{path.name}: [tool.analyzer.{name}] does not name a command; expected one of "
                f"{', '.join(COMMANDS)}. Correct or remove it."
            )


def _check_shared(path: Path, keys: list[str]) -> None:
    """Refuse a key of ``[tool.analyzer]`` that no command has as an option."""
    # Other commands are loaded only for a key that the present one does not know.
    options = {key: "" for name in COMMANDS if keys for key in _options(load(name))}
    for key in keys:
        if _plain(key) not in options:
            raise AnalyzerError(_unknown(path, "tool.analyzer", key, options))


def _options(command: Any) -> dict[str, str]:
    """Return the long options of a parser, without dashes, and the parameter each one sets."""
    return {
        _plain(option.removeprefix("--")): parameter.name
        for parameter in command.params
        if parameter.param_type_name == "option"
        for option in parameter.opts
        if option.startswith("--") and option != "--help"
    }


def _plain(key: str) -> str:
    """Write a key as the command line does, with dashes."""
    return key.replace("_", "-")


def _unknown(path: Path, table: str, key: str, options: dict[str, str]) -> str:
    """Say which key of which table is unknown, and what may be there."""
    return (
        f"{path.name}: [{table}] has the key '{key}', which is not an option; "
        f"expected one of {', '.join(sorted(options)) or 'none'}. Correct or remove it."
    )


app = typer.Typer(
    name="analyzer",
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    """Print the version and stop, where it was asked for."""
    if value:
        typer.echo(f"analyzer {analyzer.__version__}")
        raise typer.Exit


def _analyzer(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """See how gradients flow through a network while it trains, and why shortcut connections help.

    Example:
        analyzer record train.py --lr 0.1     (instead of: python train.py --lr 0.1)
        analyzer show latest
    """


app.callback(help=help_page(_analyzer))(_analyzer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: What follows ``analyzer``; those of this process when None.

    Returns:
        0 when done, 2 when the user must change something (one line on stderr says what), else the
        command's own exit code. ``record`` may end the process itself, as the script would have.
    """
    try:
        return _call(typer.main.get_command(app), arguments)
    except AnalyzerError as error:
        message = str(error)
    except _ParserError as error:
        if not error.format_message():
            error.show()
            return 2
        message = f"{error.format_message()}{_value_of(error, arguments)} {_help_hint(error)}"
    except typer.Abort:
        message = "stopped."
    short = re.sub(r"(\S{100})\S{200,}", r"\1...", message[:_MOST_LETTERS])
    print(f"analyzer: {escaped(short, 'line')}", file=sys.stderr)
    return 2


def _options_of_environment() -> list[str]:
    """The options of ``record`` in the variable ``ANALYZER_OPTIONS``."""
    text = os.environ.get("ANALYZER_OPTIONS", "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise AnalyzerError(
            f"ANALYZER_OPTIONS is {text!r} ({error}); expected options of 'analyzer record' as on "
            "a command line, such as '--run runs/mine --every 10'. Correct the variable."
        ) from error


def _value_of(error: Any, arguments: Sequence[str] | None) -> str:
    """Quote the value that the parser refuses, where its message does not."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = tuple(getattr(getattr(error, "param", None), "opts", ()))
    pairs = itertools.pairwise(given)
    found = [value for option, value in pairs if option in options]
    found += [word for word in given if word.startswith(tuple(f"{one}=" for one in options))]
    found += [word for word in given if "\0" in word]
    return "" if not found or found[0] in str(error) else f"; seen: {found[0][:80]!r}."


def _help_hint(error: Any) -> str:
    """Name the help page of the command whose options were wrong."""
    path = error.ctx.command_path if getattr(error, "ctx", None) else "analyzer"
    return f"See '{path} --help'."


def _call(command: Any, arguments: Sequence[str] | None) -> int:
    """Parse, then run; what a command returns to be called runs without the parser's frames."""
    args = sys.argv[1:] if arguments is None else list(arguments)
    args = args or ["--help"]
    if args[0] == "record":  # torchrun would take some options for its own
        args[1:1] = _options_of_environment()
    result = command.main(args, prog_name="analyzer", standalone_mode=False)
    while callable(result):
        result = result()
    return result or 0
