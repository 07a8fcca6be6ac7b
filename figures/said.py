"""What models said of one test video (before_after.json), in words: numbered, judged, told."""

from itertools import groupby

NAMES = {"base": "base model", "sft": "SFT", "threshold": "threshold baseline", "rl": "SFT + GRPO"}  # of the models, wherever words name them
HARD = "\u00a0"  # a space at which no line breaks


def entries(replies, gold):
    """The replies with their number (the same words again have the same), and how each is judged: +s after the onset, or in a word."""
    found, numbers = [], {}
    for reply in replies:
        inside = [one for one in gold if one["start"] <= reply["time"] <= one["end"]]
        after = [reply["time"] - one["onset"] for one in inside if one["onset"] is not None]
        judged = (f"{after[-1]:+.1f} s" if after else "right") if reply["right"] else "wrong" if inside else "outside"
        same = bool(found) and found[-1]["text"] == reply["text"]
        number = found[-1]["number"] if same else (found[-1]["number"] if found else 0) + 1
        first = numbers.setdefault(reply["text"], number)
        found.append(reply | {"judged": judged, "same": same, "number": number, "first": first})
    return found


def groups(said):
    """[(a reply, as `shown`: its words, or that they are those of an earlier one; " Same at ..." for repeats right after it)]."""
    found = []
    for _, several in groupby(said, key=lambda one: one["number"]):
        first, *rest = several
        again = f"Same at {', '.join(format(one['time'], 'g') for one in rest)} s.".replace(" ", HARD)
        shown = first["text"] if first["first"] == first["number"] else f"The same as {first['first']}."
        found.append((first | {"shown": shown}, " " + again if rest else ""))
    return found


def summary(one, gold):
    """(gold spans with a known onset, seconds from it to the model's first right reply in each where there is one)."""
    return sum(span["onset"] is not None for span in gold), [time - onset for onset, time in one["first_right"]]


def alt(found, said):
    """All of the picture in words: what is seen when, what each model says of it, and how long after the onset."""
    turns, parts = len(found["decisions"]), []
    for one in found["gold"]:
        seen = "" if one["onset"] is None else f", really seen from {one['onset']:.1f} s"
        parts.append(f"{one['start']:.1f} to {one['end']:.1f} s{seen}: “{one['text']}”")
    told = [f"Frames of a test video of {max(found['decisions']):g} s. The user asks “{found['question']}” Gold spans: {'; '.join(parts) or 'none'}."]
    for name, replies in said.items():
        known, waits = summary(found["models"][name], found["gold"])
        right = f", right in {len(waits)} of {known} gold spans" if known else ""
        mean = f", on average {sum(waits) / len(waits):.1f} s after the onset" if waits else ""
        silent = turns - len({one["time"] for one in replies})
        told.append(f"{NAMES.get(name, name)}: NO REPLY at {silent} of {turns} turns{right}{mean}{': ' if replies else ''}{'; '.join(map(_one, groups(replies)))}.")
    return " ".join(told).replace(".”.", ".”")


def _one(group):
    """A reply in a sentence: when, what, and how it is judged."""
    reply, again = group
    judged, same = reply["judged"], again.replace(HARD, " ").strip().rstrip(".").replace("Same", "the same")
    if judged.endswith(" s"):
        judged = f"right, {judged[1:]} {'after' if judged[0] == '+' else 'before'} the onset"
    return f"at {reply['time']:g} s “{reply['text']}” ({judged}{'; ' if same else ''}{same})"
