"""How a training is ended after the steps that the user asked for."""

__all__ = ["StopTraining"]


class StopTraining(SystemExit):
    """Ends a program after the number of steps that the user asked for, with exit code 0."""

    def __init__(self, steps: int) -> None:
        super().__init__(0)
        self.steps = steps
