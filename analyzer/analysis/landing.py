"""What a reader is told first: which net is sick, where, since when, and how far to trust it."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from analyzer.analysis.claim_numbers import NUMBERS, Measured
from analyzer.analysis.claims import Claim
from analyzer.analysis.evidence import first_nonfinite
from analyzer.analysis.findings import findings
from analyzer.analysis.limits import LIMITS
from analyzer.analysis.numerals import counted, decades, number, percent, times_ten_to
from analyzer.analysis.overview import class_entropy
from analyzer.analysis.per_run import probe_command
from analyzer.analysis.training import run_training
from analyzer.analysis.trunk import Trunk, trunk_history
from analyzer.analysis.verdict import Verdict, verdict, verdict_on
from analyzer.analysis.view import has_shortcuts, run_labels
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run

__all__ = ["Condition", "Landing", "Reading", "condition", "landing"]

_SICK = LIMITS["unhealthy"].value
_CLIFF = LIMITS["cliff"].value
_FEW_SEEDS, _ENOUGH_SEEDS = 1, 3
# Of the questions of a verdict, what is told in the sentence and the numbers already.
_TOLD = ("gain", "relative_gradient", "shortcut_share", "training_loss", "depth")
_MOST_QUESTIONS = 4


@dataclass(frozen=True)
class Condition:
    """How the gradient of one run stands, over the steps that were looked at.

    Args:
        kind: ``not finite``, ``vanishing``, ``exploding``, ``cliff``, ``finding`` (another severe
            one), ``kept`` or ``not judged``.
        sentence: Which run, what, where and since when.
        steps: First and last step that show it; empty where none was looked at.
    """

    run: str
    kind: str
    sentence: str
    steps: tuple[int, ...] = ()

    @property
    def is_sick(self) -> bool:
        """Whether something is wrong with it."""
        return self.kind not in ("kept", "not judged")


@dataclass(frozen=True)
class Reading:
    """One number of each run beside what it is to be read against.

    Args:
        values: Each number as a text, with what it is of and the run.
        against: What the number is compared with.
    """

    title: str
    values: tuple[tuple[str, Run, str], ...]
    against: str


@dataclass(frozen=True)
class Landing:
    """What the first page says of one to three runs.

    Args:
        sentence: Which is sick, where and since when.
        cause: What is known of the cause.
        evidence: On what it rests.
        is_firm: Whether it rests on three seeds or more.
        questions: Further claims of the verdict, the most telling first.
        actions: What would make it firmer: words and a command, the cheapest first.
    """

    sentence: str
    conditions: tuple[Condition, ...]
    cause: str
    evidence: str
    is_firm: bool
    readings: tuple[Reading, ...]
    questions: tuple[Claim, ...]
    actions: tuple[tuple[str, str], ...]
    found: Verdict | None


def landing(runs: Sequence[Run]) -> Landing:
    """Say of one to three runs what a reader is to know first.

    Of a run without shortcuts and one with them it is their verdict in a sentence, of a single
    residual run what its shortcuts do; of others how each stands.
    """
    with_them = [run for run in runs if has_shortcuts(run)]
    without = [run for run in runs if run not in with_them]
    pair = (without[0], with_them[0]) if without and with_them else None
    found: Verdict | None = None
    if pair is not None:
        found = verdict(*pair)
    elif len(runs) == 1 and with_them:
        found = verdict_on(runs[0])
    shown = pair or tuple(runs)
    stand = tuple(condition(run) for run in shown)
    by_key = {} if found is None else {claim.key: claim for claim in found.claims}
    own = by_key.get("counterfactual") if pair is None and by_key else None
    is_own = own is not None and own.plain is not None
    return Landing(
        sentence=_sentence(stand),
        conditions=stand,
        cause=_cause(found, pair, by_key, stand, shown),
        evidence=_evidence(found, shown),
        is_firm=found is not None and found.num_seeds >= _ENOUGH_SEEDS,
        readings=_readings(shown, own if is_own else None),
        questions=_questions(found),
        actions=_actions(shown, by_key, has_pair=pair is not None),
        found=found,
    )


def condition(run: Run) -> Condition:
    """Say how the gradient of one run stands.

    Along its trunk, at 15 steps or at all: what is not finite comes first, then a fall or growth of
    2.5 decades or more from the last layer to the first (the fit of `Trunk`), then two decades that
    are lost at one layer; then what else is severe.
    """
    first, loss_step = first_nonfinite(run), run_training(run).nonfinite_step
    if first is not None:
        when = f"is sick: NaN or infinite from step {first.step:,} on"
        text = f"{run.name} {when}, first in the {first.what} of {first.name}"
        return Condition(run.name, "not finite", text, (first.step,))
    if loss_step is not None:
        text = f"{run.name} is sick: its loss is NaN or infinite from step {loss_step:,} on"
        return Condition(run.name, "not finite", text, (loss_step,))
    history = [one for one in trunk_history(run) if not math.isnan(one.decades_fallen)]
    if not history:
        text = f"{run.name} is not judged: it holds no gradient of a layer"
        return Condition(run.name, "not judged", text)
    return _along_trunk(run, history) or _otherwise(run, history)


def _along_trunk(run: Run, history: Sequence[Trunk]) -> Condition | None:
    """What is sick along depth; None where nothing is."""
    first, last = history[0].ends
    for kind, what, where, amount, limit in (
        ("vanishing", "its gradient falls", f"from {last} to {first}", _fallen, _SICK),
        ("exploding", "its gradient grows", f"from {last} back to {first}", _grown, _SICK),
        ("cliff", "its gradient loses", f"at {_worst(history).drop_layer}", _cliff, _CLIFF),
    ):
        sick = [one for one in history if amount(one) >= limit]
        if sick:
            size = _range([amount(one) for one in sick])
            said = f"{run.name} is sick: {what} {size} {where}, {_since(sick, history)}"
            return Condition(run.name, kind, said, _ends(sick))
    return None


def _otherwise(run: Run, history: Sequence[Trunk]) -> Condition:
    """What else is severe; else that the gradient keeps its size, with its number."""
    most = max((one.decades_fallen for one in history), key=abs)
    kept = f"its gradient {_moved(most)} at most"
    severe = next((one for one in findings(run) if one.severity == "severe"), None)
    if severe is None:
        word = "is not sick" if run.status in ("finished", "running") else "was not sick so far"
        return Condition(run.name, "kept", f"{run.name} {word}: {kept}", _ends(history))
    text = f"{run.name} is sick, though {kept}: {severe.sentence.rstrip('.')}"
    return Condition(run.name, "finding", text, severe.steps)


def _fallen(one: Trunk) -> float:
    return one.decades_fallen


def _grown(one: Trunk) -> float:
    return one.decades_grown


def _cliff(one: Trunk) -> float:
    return one.cliff


def _worst(history: Sequence[Trunk]) -> Trunk:
    return max(history, key=lambda one: -math.inf if math.isnan(one.cliff) else one.cliff)


def _range(sizes: Sequence[float]) -> str:
    """Decades, as ``12.3 to 12.6 decades``; one number where both ends are written alike."""
    low, high = (decades(end).partition(" ")[0] for end in (min(sizes), max(sizes)))
    return decades(max(sizes)) if low == high else f"{low} to {decades(max(sizes))}"


def _ends(history: Sequence[Trunk]) -> tuple[int, ...]:
    return tuple(dict.fromkeys((history[0].step, history[-1].step)))


def _since(sick: Sequence[Trunk], history: Sequence[Trunk]) -> str:
    """Since when, in the steps that were looked at."""
    first, last = sick[0].step, sick[-1].step
    if len(history) == 1:
        return f"at step {first:,}, the only one"
    if len(sick) == len(history):
        return f"since step {first:,} (all {len(history)} steps looked at, to {last:,})"
    if last == history[-1].step and len(sick) == sum(one.step >= first for one in history):
        return f"since step {first:,}"
    if first == history[0].step and len(sick) == sum(one.step <= last for one in history):
        return f"at first, until step {last:,}" if last > first else f"at step {first:,} only"
    return f"at {len(sick)} of {len(history)} steps looked at, from {first:,} to {last:,}"


def _sentence(stand: Sequence[Condition]) -> str:
    """The sick ones first; what a decade is where the word comes first."""
    parts = sorted(stand, key=lambda one: not one.is_sick)
    text = ". ".join(one.sentence for one in parts) + "."
    return text.replace(" decades", " decades (powers of ten)", 1)


def _cause(
    found: Verdict | None,
    pair: tuple[Run, Run] | None,
    by_key: Mapping[str, Claim],
    stand: Sequence[Condition],
    runs: Sequence[Run],
) -> str:
    """What is known of the cause: what else differs, what an intervention shows."""
    if found is None:
        said = "It has no shortcuts: the same net with them would show what they change."
        if len(runs) > 1:
            alike = "have" if has_shortcuts(runs[0]) else "lack"
            said = f"All of them {alike} shortcuts: what shortcuts do is not compared here."
        return " ".join([said, *_remedies(stand, runs)])
    parts = []
    others = [one.words for one in found.differences if one.explains]
    if others:
        parts.append(f"Not the shortcuts alone: {'; '.join(others)}.")
    own = by_key["counterfactual"]
    name = pair[1].name if pair else runs[0].name
    if own.status in ("holds", "fails", "unclear"):
        left, right = (_moved(x) for x in (own.plain, own.residual))
        is_along = {one.kind for one in stand} & {"vanishing", "exploding", "cliff"}
        word = "What the shortcuts do"
        if pair and is_along:
            word = {
                "holds": "Cause shown",
                "fails": "Not caused by the shortcuts",
                "unclear": "Cause unclear",
            }[own.status]
        parts.append(
            f"{word}: at the same weights (step {own.steps[0]:,}) the gradient of {name} {left} "
            f"without its shortcuts, {right} with them."
        )
    elif pair and pair[0].manifest.get("skip_scale") is not None and not others:
        parts.append("Cause shown: the two differ in their shortcuts alone (a twin).")
    elif pair and any(one.is_sick for one in stand):
        parts.append("Cause not tested: nothing was switched off.")
    elif not pair:
        parts.append("What its shortcuts do was not measured.")
    return " ".join([*parts, *_remedies(stand, runs)])


def _remedies(stand: Sequence[Condition], runs: Sequence[Run]) -> list[str]:
    """What to do about runs whose cause is not their shortcuts."""
    found = []
    for one, run in zip(stand, runs, strict=True):
        if one.kind in ("not finite", "finding") or (one.is_sick and len(runs) == 1):
            severe = next((f for f in findings(run) if f.severity == "severe"), None)
            if severe is not None:
                found.append(f"What to do: {severe.remedy.partition('. ')[0].rstrip('.')}.")
    return list(dict.fromkeys(found))


def _moved(fallen: float | None) -> str:
    if fallen is None or math.isnan(fallen):
        return "is not a number"
    return f"{'falls' if fallen >= 0 else 'grows'} {decades(fallen, None, [_SICK])}"


def _evidence(found: Verdict | None, runs: Sequence[Run]) -> str:
    """Seeds, steps, and what probes saw."""
    steps = min((len(run.recorded_steps()) for run in runs), default=0)
    seeds = found.num_seeds if found else 1
    said = [counted(seeds, "seed"), counted(steps, "step")]
    if found is not None and found.evidence["samples"]:
        said.append(f"probes on 1 batch of {found.evidence['samples']:,}")
    said.append(f"sick from {_SICK:g} decades on")
    return " · ".join(said)


def _readings(runs: Sequence[Run], own: Claim | None) -> tuple[Reading, ...]:
    """The three numbers; ``own`` is what the shortcuts of a single run do."""
    both = [run_training(run) for run in runs]
    guess = next((e for e in map(class_entropy, runs) if not math.isnan(e)), math.nan)
    counts = {one.num_final for one in both if one.num_losses}
    over = f"mean of the last {counts.pop()} steps" if len(counts) == 1 else "mean at the end"
    if not math.isnan(guess):
        over += f"; guessing gives {number(guess)}"
    labels = [label.text for label in run_labels(runs)]
    first, share, loss = (
        tuple((name, run, _text(run, key, say)) for name, run in zip(labels, runs, strict=True))
        for key, say in (
            ("fallen_median", lambda fallen: times_ten_to(-fallen)),
            ("shortcut_share", percent),
            ("training_loss", number),
        )
    )
    against = "1 is as much as at the last layer; fit along depth, median over steps"
    if own is not None:
        first = tuple(
            (name, runs[0], times_ten_to(-x))
            for name, x in (("without shortcuts", own.plain), (labels[0], own.residual))
            if x is not None
        )
        against = (
            f"1 is as much as at the last; fit along depth, same weights, step {own.steps[0]:,}"
        )
    return (
        Reading("Gradient that arrives at the first layer", first, against),
        Reading(
            "Carried by the shortcuts",
            share,
            "of the gradient at a join, its branch the rest; median over joins and steps",
        ),
        Reading("Final loss", loss, over),
    )


def _text(run: Run, key: str, say: Callable[[float], str]) -> str:
    if key == "shortcut_share" and not has_shortcuts(run):
        return "no shortcuts"
    try:
        found: Measured = NUMBERS[key](run)
    except NotRecordedError:
        return "not recorded"
    return say(found.value)


def _questions(found: Verdict | None) -> tuple[Claim, ...]:
    """The claims that are told in cards: what holds first, then open ones; one of each moment."""
    if found is None:
        return ()
    order = {"holds": 0, "undefined": 1, "unclear": 2, "not measured": 3, "fails": 4}
    moments = tuple(f"{kind}_" for kind in ("vanishing", "exploding", "depth"))
    kept = [one for one in found.claims if one.key not in _TOLD and not one.key.startswith(moments)]
    # The order of the statements stays among those of one answer.
    return tuple(sorted(kept, key=lambda one: order[one.status])[:_MOST_QUESTIONS])


def _actions(
    runs: Sequence[Run], by_key: Mapping[str, Claim], *, has_pair: bool
) -> tuple[tuple[str, str], ...]:
    """What would make it firmer, the cheapest first."""
    residual = next((run for run in runs if has_shortcuts(run)), None)
    made = []
    own = by_key.get("counterfactual")
    if residual is not None and own is not None and own.status == "not measured":
        made.append(("test the shortcuts themselves", probe_command(residual, "counterfactual")))
    program = _program(residual or runs[0])
    seconds = [run.manifest.get("seconds") for run in runs]
    known = [float(x) for x in seconds if isinstance(x, int | float) and x > 0]
    if program and residual is not None:
        pairs = 2 * sum(known) / len(known) if known else math.nan
        for is_shown, words, option, count in (
            (not has_pair, "record its twin", "", 1),
            (has_pair, "three seeds", "--seeds 3 ", 3),
        ):
            if is_shown:
                about = f", about {_time(count * pairs)}" if known else ""
                made.append((f"{words}{about}", f"analyzer record --twin {option}{program}"))
    return tuple(made)


def _program(run: Run) -> str:
    """The program of a run as a command line; empty where its manifest does not hold all of it."""
    words = run.manifest.get("argv")
    if not isinstance(words, list) or any("<path:" in str(word) for word in words):
        return ""
    loop = run.manifest.get("loop")
    steps = loop.get("steps") if isinstance(loop, dict) else None
    return shlex.join([*(["--steps", str(steps)] if steps else []), *map(str, words)])


def _time(seconds: float) -> str:
    return f"{math.ceil(seconds / 60)} min" if seconds >= 90 else f"{math.ceil(seconds)} s"
