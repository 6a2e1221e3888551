"""Errors that a user can cause: what was seen, what was expected, what to do."""

__all__ = [
    "AnalyzerError",
    "ModelError",
    "NotRecordedError",
    "RunExistsError",
    "RunNotFoundError",
    "SchemaError",
    "ScriptError",
    "StopTraining",
    "TooLargeError",
    "TooMuchError",
]


class AnalyzerError(Exception):
    """Base of all errors that the command line shows as one line with exit code 2."""


class ModelError(AnalyzerError, TypeError):
    """What was given is no model, or its call lacks arguments."""


class RunNotFoundError(AnalyzerError):
    """No run of that name or at that path."""


class RunExistsError(AnalyzerError):
    """A run folder exists where a new one was asked for."""


class SchemaError(AnalyzerError):
    """A run folder that this version cannot read: newer, foreign or damaged."""


class NotRecordedError(AnalyzerError):
    """A quantity or probe that this run does not hold."""


class TooLargeError(AnalyzerError, ValueError):
    """A file would take more than it may, or other than it says."""


class TooMuchError(AnalyzerError):
    """One question would read more of many files than it may."""


class ScriptError(AnalyzerError):
    """A script or model file that cannot be recorded."""


class StopTraining(SystemExit):
    """Ends a program after the steps that the user asked for, with exit code 0.

    Args:
        steps: How many there were.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(0)
        self.steps = steps
