"""What a reader is told first: which net is sick, where, since when, and how far to trust it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analyzer.analysis.claims import Claim
from analyzer.analysis.evidence import broke_first, opening_step
from analyzer.analysis.findings import findings
from analyzer.analysis.limits import LIMITS
from analyzer.analysis.numerals import counted, decades
from analyzer.analysis.overview import class_entropy
from analyzer.analysis.per_run import probe_command, record_command
from analyzer.analysis.readings import Reading, readings
from analyzer.analysis.training import nonfinite_loss_step, run_training
from analyzer.analysis.trunk import Trunk, trunk_history
from analyzer.analysis.verdict import Verdict, verdict, verdict_on
from analyzer.analysis.view import has_shortcuts
from analyzer.storage.run import Run

__all__ = ["Condition", "Landing", "condition", "landing"]

_SICK = LIMITS["unhealthy"].value
_CLIFF = LIMITS["cliff"].value
# Share of the limit from which on the sentence says how near it is.
_NEAR = 0.9
# Of the questions of a verdict, what is told in the sentences and the numbers already.
_TOLD = (
    *("vanishing", "exploding", "depth", "gain", "relative_gradient", "counterfactual"),
    *("shortcut_share", "training_loss"),
)
_MOST_QUESTIONS = 3
# The networks of the zoo that have the same one with shortcuts beside them.
_PLAIN_OF_ZOO = re.compile(r"(?<= zoo:)([\w-]+)-plain\b")


@dataclass(frozen=True)
class Condition:
    """How the gradient of one run stands, over the steps that were looked at.

    Args:
        kind: ``not finite``, ``vanishing``, ``exploding``, ``cliff``, ``finding`` (another severe
            one), ``kept`` or ``not judged``.
        sentence: Which run, what, where and since when.
        steps: First and last step that show it; empty where none was looked at.
        looked: How many steps were looked at.
    """

    run: str
    kind: str
    sentence: str
    steps: tuple[int, ...] = ()
    looked: int = 0

    @property
    def is_sick(self) -> bool:
        """Whether something is wrong with it."""
        return self.kind not in ("kept", "not judged")

    @property
    def broke(self) -> int | None:
        """The first step that is not finite; None where all of them are."""
        return self.steps[0] if self.kind == "not finite" else None


@dataclass(frozen=True)
class Landing:
    """What the first page says of one to three runs.

    Args:
        sentence: Which is sick, where and since when.
        cause: What is known of the cause.
        evidence: What each statement rests on: what it is, how sure it is, and why.
        look: The step to look at first, the last that is finite of a run that broke; else None.
        questions: Further claims of the verdict, the most telling first.
        action: What to do next, in words, and the command that does it; empty where none is known.
    """

    sentence: str
    conditions: tuple[Condition, ...]
    cause: str
    evidence: tuple[tuple[str, str, str], ...]
    look: int | None
    readings: tuple[Reading, ...]
    questions: tuple[Claim, ...]
    action: tuple[str, str]
    found: Verdict | None


def landing(runs: Sequence[Run]) -> Landing:
    """Say of one to three runs what a reader is to know first.

    Of a plain and a residual run their verdict, of a residual one what its shortcuts do.
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
    return Landing(
        sentence=_sentence(stand),
        conditions=stand,
        cause=_cause(found, pair, by_key, stand, shown),
        evidence=_evidence(found, by_key.get("counterfactual"), stand, shown),
        look=opening_step(shown),
        readings=readings(shown, [one.broke for one in stand]),
        questions=_questions(found),
        action=_action(shown, by_key, stand, has_pair=pair is not None),
        found=found,
    )


def condition(run: Run) -> Condition:
    """Say how the gradient of one run stands.

    Along its trunk, at 15 steps or at all: what is not finite comes first, then a fall or growth of
    2.5 decades or more from the last layer to the first (the fit of `Trunk`), then two decades that
    are lost at one layer; then what else is severe.
    """
    broken = _broken(run)
    if broken is not None:
        return broken
    history = [one for one in trunk_history(run) if not math.isnan(one.decades_fallen)]
    if not history:
        text = f"{run.name} is not judged: it holds no gradient of a layer"
        return Condition(run.name, "not judged", text)
    found = _along_trunk(run, history) or _otherwise(run, history)
    return replace(found, sentence=found.sentence + _no_better(run), looked=len(history))


def _broken(run: Run) -> Condition | None:
    """What is not finite, in the order in which it is computed: layers, loss, gradients."""
    first, loss_step = broke_first(run), nonfinite_loss_step(run)
    known = [one.step for one in [first] if one] + [one for one in [loss_step] if one is not None]
    if not known:
        return None
    step, parts = min(known), []
    if loss_step == step:
        parts.append("the loss")
    if first is not None and first.step == step:
        part = f"the {first.what} of {_said(first.name)}"
        parts = [part] if first.what == "activation" else [*parts, part]
    where = ", then in ".join(parts)
    text = f"{run.name} is sick: NaN or infinite from step {step:,} on, first in {where}"
    return Condition(run.name, "not finite", text, (step,))


def _no_better(run: Run) -> str:
    """That the loss ends where answering with the shares of the classes alone would."""
    is_idle = run_training(run).final_loss >= class_entropy(run)
    return "; it ends no better than guessing" if is_idle else ""


def _along_trunk(run: Run, history: Sequence[Trunk]) -> Condition | None:
    """What is sick along depth; None where nothing is."""
    first, last = map(_said, history[0].ends)
    for kind, what, where, amount, limit in (
        ("vanishing", "falls", f"from {last} to {first}", "decades_fallen", _SICK),
        ("exploding", "grows", f"from {last} back to {first}", "decades_grown", _SICK),
        ("cliff", "loses", f"at {_said(_worst(history).drop_layer)}", "cliff", _CLIFF),
    ):
        sick = [one for one in history if getattr(one, amount) >= limit]
        if sick:
            how = f"{what} {_range([getattr(one, amount) for one in sick])} {where}"
            said = f"{run.name} is sick: its gradient {how}, {_since(sick, history)}"
            return Condition(run.name, kind, said, _ends(sick))
    return None


def _otherwise(run: Run, history: Sequence[Trunk]) -> Condition:
    """What else is severe; else that the gradient keeps its size, with its number."""
    most = max(history, key=lambda one: abs(one.decades_fallen))
    size = decades(abs(most.decades_fallen), None, [_SICK])
    is_near = abs(most.decades_fallen) >= _NEAR * _SICK
    limit = f"; the limit is {_SICK:g}" * is_near
    kept = f"a line fitted to its gradient changes by {size} at most (step {most.step:,}{limit})"
    severe = next((one for one in findings(run) if one.severity == "severe"), None)
    if severe is None:
        word = "is not sick" if run.status in ("finished", "running") else "was not sick so far"
        near = ", but close to it" * is_near
        return Condition(run.name, "kept", f"{run.name} {word}{near}: {kept}", _ends(history))
    text = f"{run.name} is sick, though {kept}: {severe.sentence.rstrip('.')}"
    return Condition(run.name, "finding", text, severe.steps)


def _said(name: str) -> str:
    """The name of a layer in a sentence; a number alone would be read as one."""
    return f"layer {name}" if name.isdigit() else name


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
        return f"since step {first:,}"
    if last == history[-1].step and len(sick) == sum(one.step >= first for one in history):
        return f"since step {first:,}"
    if first == history[0].step and len(sick) == sum(one.step <= last for one in history):
        return f"at first, until step {last:,}" if last > first else f"at step {first:,} only"
    return f"at {len(sick)} of {len(history)} checked steps, from {first:,} to {last:,}"


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
        said = "It has no shortcuts."
        said += " To see whether that is the cause, train it with them." * stand[0].is_sick
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
        right = right.removeprefix(f"{left.partition(' ')[0]} ")
        is_along = {one.kind for one in stand} & {"vanishing", "exploding", "cliff"}
        word = "What the shortcuts do"
        if pair and is_along:
            word = {
                "holds": "Cause shown",
                "fails": "Not caused by the shortcuts",
                "unclear": "Cause unclear",
            }[own.status]
        parts.append(
            f"{word}: from the last layer to the first, at the same weights (step "
            f"{own.steps[0]:,}), the gradient of {name} {left} without its shortcuts, "
            f"{right.removesuffix(' decades')} with them."
        )
        if pair and word == "Cause shown":
            parts.append(f"What to do: give {pair[0].name} shortcuts, as {name} has.")
    elif pair and _is_twin(found, pair):
        parts.append("Cause shown: the two differ in their shortcuts alone (a twin).")
    elif pair and any(one.is_sick for one in stand):
        parts.append("Cause not tested: nothing was switched off.")
    elif not pair:
        parts.append("How the gradient would be without its shortcuts was not measured.")
    todo = _remedies(stand, runs)
    return " ".join([*todo, *parts] if any(one.broke for one in stand) else [*parts, *todo])


def _is_twin(found: Verdict, runs: Sequence[Run]) -> bool:
    """Whether two runs differ in their shortcuts alone, which were scaled in the first."""
    is_scaled = len(runs) > 1 and runs[0].manifest.get("skip_scale") is not None
    return is_scaled and not any(one.explains for one in found.differences)


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


def _evidence(
    found: Verdict | None, own: Claim | None, stand: Sequence[Condition], runs: Sequence[Run]
) -> tuple[tuple[str, str, str], ...]:
    """How sure the diagnosis is, the cause, and that other seeds do the same."""
    steps = min((len(run.recorded_steps()) for run in runs), default=0)
    looked = min((one.looked for one in stand if one.looked), default=0)
    made = []
    if any(one.broke is not None for one in stand):
        counts = f"counted at each of the {counted(steps, 'recorded step')}"
        made.append(("NaN or infinity", "certain", counts))
    if looked:
        checked = (
            f"a line through all layers at {looked} of the {counted(steps, 'recorded step')}; "
            f"sick: {_SICK:g} decades or more"
        )
        made.append(("diagnosis", "measured", checked))
    is_sick = any(one.is_sick for one in stand)
    if found is not None and own is not None and own.status in ("holds", "fails", "unclear"):
        word = {"holds": "shown", "fails": "ruled out", "unclear": "unclear"}[own.status]
        said = ("cause", word) if len(runs) > 1 and is_sick else ("effect of shortcuts", "measured")
        made.append((*said, f"1 batch of {found.evidence['samples']:,} samples"))
    elif is_sick and found is not None and _is_twin(found, runs):
        made.append(("cause", "shown", "a twin, trained without its shortcuts"))
    if is_sick and all(what != "cause" for what, _, _ in made):
        made.append(("cause", "not tested", "nothing else was tried"))
    return (*made, ("other seeds", "not known", "1 seed"))


def _questions(found: Verdict | None) -> tuple[Claim, ...]:
    """The claims that are told in cards: what holds first, then open ones; one of each moment."""
    if found is None:
        return ()
    order = {"holds": 0, "undefined": 1, "unclear": 2, "not measured": 3, "fails": 4}
    kept = [one for one in found.claims if not one.key.startswith(_TOLD)]
    # The order of the statements stays among those of one answer.
    return tuple(sorted(kept, key=lambda one: order[one.status])[:_MOST_QUESTIONS])


def _action(
    runs: Sequence[Run], by_key: Mapping[str, Claim], stand: Sequence[Condition], *, has_pair: bool
) -> tuple[str, str]:
    """The one thing to do next, and its command; what makes an answer firmer, the cheapest first.

    Of a sick run by itself it is to record it again once what is advised was done.
    """
    residual = next((run for run in runs if has_shortcuts(run)), None)
    own = by_key.get("counterfactual")
    words, option, count = "repeat it with another seed", "--seed 1", 1
    sick = [run for run, one in zip(runs, stand, strict=True) if one.is_sick]
    if any(one.broke is not None for one in stand) or (sick and len(runs) == 1):
        command = record_command(sick[0], "")
        plain = _PLAIN_OF_ZOO.search(command)
        if plain is not None:  # the change is known, and has a name
            said = f"Next: record the same net with shortcuts, zoo:{plain[1]}{_about(runs, 1)}"
            return said, _PLAIN_OF_ZOO.sub(r"\1", command)
        return f"Next: once that is changed, record it again{_about(runs, 1)}", command
    start = "Next: " if sick else _nothing_to_mend(runs, stand)
    if residual is not None and own is not None and own.status == "not measured":
        command = probe_command(residual, "counterfactual")
        return f"{start}measure the gradient without the shortcuts", command
    if has_pair:
        words, option, count = "repeat both with three seeds", "--twin --seeds 3", 6
    elif residual is not None:
        words, option, count = "compare with the same net trained without shortcuts", "--twin", 2
    command = record_command(residual or runs[0], option)
    return f"{start}{words}{_about(runs, count)}", command


def _nothing_to_mend(runs: Sequence[Run], stand: Sequence[Condition]) -> str:
    """How the next step of runs that are not sick begins."""
    if any(one.kind != "kept" for one in stand):
        return "Next: "
    warnings = sum(one.severity == "warning" for run in runs for one in findings(run))
    if not warnings:
        return "Nothing to mend. To learn more: "
    return (
        f"Nothing severe to mend ({counted(warnings, 'warning')} in the findings). To learn more: "
    )


def _about(runs: Sequence[Run], count: int) -> str:
    """How long as many runs take, as long as these took."""
    seconds = [run.manifest.get("seconds") for run in runs]
    known = [float(x) for x in seconds if isinstance(x, int | float) and x > 0]
    return f", about {_time(count * sum(known) / len(known))}" if known else ""


def _time(seconds: float) -> str:
    return f"{math.ceil(seconds / 60)} min" if seconds >= 90 else f"{math.ceil(seconds)} s"
