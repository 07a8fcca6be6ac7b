"""Quality gates: what an annotator wrote must hold before a dialogue is made of it; each rule counts in the filter ledger."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..dialogue import NO_REPLY
from ..score import Judge
from .video import FilterLedger


@dataclass(frozen=True)
class Limits:
    """Shares of a question's scenes without an answer between which it is kept, and the length of a turn in s."""

    least_silence: float = 0.0
    most_silence: float = 0.95
    turn: float = 4.0


def gate(record: dict, ledger: FilterLedger, judge: Judge, limits: Limits = Limits()) -> dict | None:
    """The record with the scenes, questions and answers that pass; None where no question is left.

    An answer that is not supported by its scene's caption (by `judge.covered`), or that only repeats what was answered before,
    becomes NO REPLY; a scene shorter than a turn, in which no reply could be placed, goes; a question goes that gives its answers
    away, or that too many or too few scenes answer.
    """
    name, scenes = record["name"], record["scenes"]
    kept = [k for k, s in enumerate(scenes)
            if ledger.check("scene is as long as a turn", f"{name} at {s['start']:.1f} s", s["end"] - s["start"] >= limits.turn, "shorter")]  # fmt: skip
    questions = []
    for asked in record["questions"]:
        given = _answers(asked, [scenes[k] for k in kept], kept, f"{name}: {asked['question']}", ledger, judge)
        said = [answer for answer in given if answer != NO_REPLY]
        item, silence = f"{name}: {asked['question']}", given.count(NO_REPLY) / max(len(given), 1)
        ok = ledger.check("question has an answer", item, bool(said), "no scene answers it")
        ok = ok and ledger.check("share of NO REPLY is within its limits", item, limits.least_silence <= silence <= limits.most_silence, f"{silence:.2f}")
        leak = ok and sum(judge.covered([asked["question"]], answer) is True for answer in said) > len(said) / 2
        if ok and ledger.check("question does not give its answer away", item, not leak, "it says what most answers say"):
            questions.append({"question": asked["question"], "answers": given})
    if not ledger.check("video has a question", name, bool(questions), "none passed"):
        return None
    return record | {"scenes": [scenes[k] for k in kept], "questions": questions}


def _answers(asked: dict, scenes: Sequence[dict], kept: Sequence[int], item: str, ledger: FilterLedger, judge: Judge) -> list[str]:
    given, said = [], []
    for scene, k in zip(scenes, kept):
        answer = asked["answers"][k]
        if answer != NO_REPLY:
            supported = judge.covered([scene["caption"]], answer)
            told = f"{item} at {scene['start']:.1f} s: {answer}"
            if not ledger.check("answer is supported by its caption", told, supported is True, "not in it" if supported is not None else "judge failed"):
                answer = NO_REPLY
            elif not ledger.check("answer says something new", told, not (said and judge.covered(said, answer) is True), "said before"):
                answer = NO_REPLY
            else:
                said.append(answer)
        given.append(answer)
    return given
