"""What the notebooks show: static pictures with alt text and their data as a table; a slider only on top of them."""

import base64
import inspect
import io
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path

import matplotlib
import pandas as pd
from IPython.display import HTML
from markupsafe import Markup
from matplotlib.figure import Figure

from . import report
from .dialogue import NO_REPLY, Dialogue
from .files import read_csv
from .manifest import versions
from .profile import Profile, load_profile
from .report import SMOKE, TEMPLATES
from .score import Reward, pauc

import style  # isort: skip - modules of figures/: where that is, `report` knows

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "av", "numpy")
PARTS = TEMPLATES.get_template("show.html").module
MARKS = {None: ("D", style.BLUE), 1: ("^", style.BLUE), -1: ("v", style.RED), 0: ("o", style.GREY)}  # a reply by the way it is pushed
HISTORY = "history (given)"  # the lane of what was said before a rollout; its turns are those up to `given`
COLOR = {"user": style.ORANGE, "assistant": style.BLUE, "silent": style.GREY}


def begin(name: str) -> Profile:
    """Load a profile, go to the repository's folder (paths are relative to it), print versions and purpose."""
    os.chdir(ROOT)
    profile, found = load_profile(name), versions()
    matplotlib.rcParams.update(style.LOOK)
    print(f"Python {platform.python_version()};", *(f"{name} {found[name]};" for name in PACKAGES if name in found))
    print(f"Profile {profile.name}: {profile.purpose}. Seeds: {', '.join(map(str, profile.seeds))}.")
    print("" if profile.meaningful else SMOKE)
    return profile


def table(rows: Sequence[Mapping], caption: str, most: int = 20) -> HTML:
    """Rows (dicts with the same keys) under a caption: numbers to three digits, the first `most` rows."""
    return HTML(PARTS.table(rows, caption, most))


def picture(drawing: Figure | bytes, alt: str, rows: Sequence[Mapping] = (), kind: str = "svg+xml") -> HTML:
    """A drawing with its alt text below it, and the rows it was drawn from, folded away; a wide one scrolls on a phone."""
    wide = not isinstance(drawing, Figure) or drawing.get_figwidth() > 6
    if isinstance(drawing, Figure):
        drawing.savefig(buffer := io.BytesIO(), format=kind.split("+")[0], bbox_inches="tight")
        drawing = buffer.getvalue()
    return HTML(PARTS.picture(base64.b64encode(drawing).decode(), kind, alt, rows, wide))


def figure(name: str, profile: Profile) -> HTML:
    """Draw a figure or table of the paper (a script of figures/) from the run's results files, and show it."""
    draw = report.scripts()[name].draw
    paths = {path.suffix: path for path in draw(profile.results, profile.run_dir / "figures")}
    if ".svg" in paths:
        return picture(paths[".svg"].read_bytes(), paths[".txt"].read_text().strip(), read_csv(paths[".csv"]))
    made = draw.table(profile.results)
    rows = [dict(zip(made.header, row, strict=True)) for row in made.rows]
    return HTML(PARTS.table(rows, made.title, len(rows)) + PARTS.notes(made.notes))


def source(thing) -> HTML:
    """The source that ran, with the place where it stands."""
    lines, first = inspect.getsourcelines(thing)
    place = f"{Path(inspect.getsourcefile(inspect.unwrap(thing))).relative_to(ROOT)}, from line {first}"
    return HTML(PARTS.source(place, "".join(lines)))


def dialogue(shown: Dialogue, most: int = 40) -> HTML:
    """A dialogue as coloured rows; silent turns in a row are one. Roles stand in words, too."""
    events = [("", "system", shown.system)]
    for time, turn in zip(shown.times(), shown.turns):
        if turn.text or turn.reply != NO_REPLY:
            events.append((f"{time:g} s", "user", f"[{len(turn.frames)} frame{'s' * (len(turn.frames) > 1)}] " * bool(turn.frames) + (turn.text or "")))
        if turn.reply is not None:
            events.append((f"{time:g} s", "silent" if turn.reply == NO_REPLY else "assistant", turn.reply))
    rows = []
    for _, run in groupby(enumerate(events), key=lambda event: -1 if event[1][1] == "silent" else event[0]):
        (when, who, text), *rest = [event for _, event in run]
        rows.append((f"{when} to {rest[-1][0]}", who, f"{text} x {len(rest) + 1}") if rest else (when, who, text))
    return HTML(PARTS.dialogue(shown.id, rows[:most], COLOR, style.INK))


def tokens(encoder, encoded, most: int = 400) -> HTML:
    """Encoded text of one dialogue; what has a label is marked and stands in double brackets."""
    pairs = list(zip(encoded.ids, encoded.labels, strict=True))[:most]
    runs = [(learned, [token for token, _ in run]) for learned, run in groupby(pairs, key=lambda pair: pair[1] >= 0)]
    return HTML(PARTS.tokens([(learned, encoder.tokenizer.decode(run)) for learned, run in runs]))


def timeline(shown: Dialogue, lanes: Mapping[str, Sequence[tuple[float, str]]], caption: str, frames: Callable | None = None, *,
             speaking: Sequence[tuple[float, float]] = (), onsets: Sequence[float] = (), waits: Mapping[str, Sequence[tuple[float, float]]] = {},
             pushes: Mapping[str, float] = {}, now: float | None = None, given: float = 0.0) -> HTML:  # fmt: skip
    """What the user says, gold spans and a lane of replies [(s, text)] each, under frames(indices), on one axis of video time.

    speaking: [(s, probability of speaking)]. onsets: s. waits: {lane: [(onset, reply)]}, drawn with their seconds. pushes: {lane:
    advantage}; its sign is the way (colour and direction) and its size the size of the lane's marks. now: a line at this time.
    given: until then it is history, shaded, with a lane HISTORY of its own. Where gold spans overlap, all stand at alternating heights.
    """
    timed, begin = list(zip(shown.times(), shown.turns)), shown.skipped * shown.interval
    end, gold = timed[-1][0], sorted(shown.gold, key=lambda g: g.start)
    apart = 0.18 * any(b.start < a.end for a, b in zip(gold, gold[1:]))
    high = {"probability of speaking": 1.2} if speaking else {}
    high |= dict.fromkeys(reversed(lanes), 0.6) | ({"gold spans": 0.8} if shown.gold else {})
    events = [("user", time, time, turn.text) for time, turn in timed if turn.text]
    high |= ({"user speaks": 0.6} if events else {}) | ({"frames": 2.0} if frames else {})
    low = dict(zip(high, accumulate(high.values(), initial=0.0)))
    middle = {name: low[name] + high[name] / 2 for name in high}
    drawing = Figure(figsize=(10, 0.7 + 0.46 * sum(high.values())), layout="constrained")
    axes, indices = drawing.subplots(), shown.frame_indices()
    if frames:
        indices = indices[:: -(-len(indices) // 10)]
        wide = (end - begin) / len(indices)
        for k, image in enumerate(frames(indices)):
            left, bottom = begin + k * wide, low["frames"] + 0.1
            axes.imshow(image, extent=(left + 0.04 * wide, left + 0.96 * wide, bottom, bottom + 1.9), aspect="auto")
    for _, time, _, _ in events:
        axes.plot(time, middle["user speaks"], "s", color=style.ORANGE, clip_on=False)
    for k, g in enumerate(gold):
        axes.barh(middle["gold spans"] + apart * (-1) ** k, g.end - g.start, 0.5 - apart, g.start, color=style.GREEN, alpha=0.4, edgecolor=style.GREEN)
        events.append(("gold span", g.start, g.end, g.text))
    for onset in onsets:
        axes.plot([onset] * 2, [low["gold spans"] + high["gold spans"], 0], linestyle=(0, (1, 2)), color=style.RED)
        events.append(("onset", onset, onset, ""))
    for name, said in lanes.items():
        push = pushes.get(name)
        (mark, color), size = MARKS[push and (1 if push > 0 else -1)], 6 if push is None else 4 + 3 * min(abs(push), 2.0)
        decided = [time for time, turn in timed if turn.frames and (time <= given) == (name == HISTORY)]
        axes.plot(decided, [middle[name]] * len(decided), "|", color=color if name in pushes else style.GREY, markersize=size)
        axes.plot([time for time, _ in said], [middle[name]] * len(said), mark, color=color, markersize=size, clip_on=False)
        for onset, time in waits.get(name, ()):
            axes.plot([onset, time], [middle[name]] * 2, color=style.RED, linewidth=1.5)
            axes.text((onset + time) / 2, middle[name] + 0.05, f"{time - onset:.1f} s", ha="center", va="bottom", fontsize=7, color=style.RED)
        events += [(name, time, time, text) for time, text in said]
    if speaking:
        at, (times, chances) = low["probability of speaking"], zip(*speaking)
        axes.vlines(times, at, [at + chance for chance in chances], color=style.PURPLE, linewidth=3)
        axes.plot([begin, end], [at + 1] * 2, ":", color=style.GREY, linewidth=0.8)
        axes.text(end, at + 1, " 1", va="center", fontsize=7)
        events += [("probability of speaking", time, time, f"{chance:.3f}") for time, chance in speaking]
    if now is not None:
        axes.axvline(now, color="black", linewidth=1)
    axes.axvspan(begin, max(begin, given), color=style.GREY, alpha=0.15, linewidth=0)
    axes.set(xlim=(begin, end), ylim=(0, sum(high.values())), yticks=list(middle.values()), yticklabels=list(middle), xlabel="video time, s")
    asked = next((f"“{turn.text}” " for turn in shown.turns if turn.text), "")
    marks = "A tick is a turn, a diamond a reply" + ", ▲ one pushed up, ▼ one pushed down, a circle neither" * bool(pushes)
    counts = ", ".join(f"{'' if name == 'replies' else f'{name} '}{len(said)}" for name, said in lanes.items())
    told = f"{caption} {asked}{end - begin:g} s; gold spans: {len(shown.gold)}; replies: {counts}. {marks}" + "; dotted: the onsets" * bool(onsets)
    return picture(drawing, f"{told}.", [dict(zip(("what", "from", "to", "text"), event)) for event in events], "png" if frames else "svg+xml")


def strip(dataset, shown: Dialogue, caption: str, said: Sequence[tuple[float, str]] | None = None) -> HTML:
    """The timeline of a dialogue of this dataset, with replies `said`, or its own."""
    if said is None:
        said = [(time, turn.reply) for time, turn in zip(shown.times(), shown.turns) if turn.reply not in (None, NO_REPLY)]
    return timeline(shown, {"replies": said}, caption, partial(dataset.frames, shown))


def pauc_area(span, replies, max_score: float, title: str, initial: float = 0.5, omega: float = 0.0) -> HTML:
    """The step line of scores over a span, and the area that PAUC measures; omega pulls the replies [(time, score)] (rings) to the left."""
    inside = sorted((t, s) for t, s in replies if span[0] <= t <= span[1])
    pulled = [(span[0], initial), *((span[0] + (t - span[0]) * (1 - omega), s) for t, s in inside)]
    times, scores = zip(*pulled, (span[1], pulled[-1][1]))
    axes = (drawing := Figure(figsize=(3.2, 2.2), layout="constrained")).subplots()
    axes.fill_between(times, scores, step="post", color=style.SKY, alpha=0.45, linewidth=0)
    axes.step(times, scores, where="post", color=style.BLUE)
    for (t, s), left in zip(inside, times[1:]):
        axes.plot([left, t], [s, s], ":", color=style.GREY, marker="o", fillstyle="none", clip_on=False)
    axes.plot(times[1:-1], scores[1:-1], "o", color=style.BLUE, clip_on=False)
    axes.set(xlim=span, ylim=(0, max_score), xlabel="video time, s", ylabel="score", title=title)
    value = 100 * pauc(span, replies, max_score, omega, initial)
    said = ", ".join(f"score {s:g} at {t:g} s" for t, s in replies) or "no reply"
    return picture(drawing, f"{title}: {said}; PAUC {value:.1f}.")


def reward_terms(rewards: Mapping[str, Reward], caption: str, of: str = "rollout", **more: Sequence) -> HTML:
    """One row a rollout (or what `of` says): the four terms, their weighted sum, and more columns."""
    rows = [{of: name, "r_PAUC": r.pauc, "r_rep": r.rep, "r_in_span": r.in_span, "r_pfx": r.pfx, "weighted sum": r.total} for name, r in rewards.items()]
    return table([row | {key: column[k] for key, column in more.items()} for k, row in enumerate(rows)], caption)


def curves(paths: Mapping[str, Path], columns: Sequence[str], caption: str) -> HTML:
    """Columns of CSV logs over the step, a panel a column and a line a file; missing files are left out."""
    wide, ends = 3 if len(columns) % 3 == 0 else min(len(columns), 4), []
    high = -(-len(columns) // wide)
    drawing = Figure(figsize=(max(4.5, 3 * wide), 2.3 * high), layout="constrained")
    for axes, column in zip(drawing.subplots(high, wide, squeeze=False).flat, columns):
        axes.set(title=column, xlabel="step")
        for k, (label, path) in enumerate(paths.items()):
            log = pd.read_csv(path).set_index("step") if path.exists() else pd.DataFrame()
            if len(points := log[column].dropna() if column in log else ()):
                axes.plot(points, label=label, **style.SERIES[k % len(style.SERIES)] | {"marker": "", "linewidth": 1.2})
                ends.append({"line": label, "column": column, "first": points.iloc[0], "last": points.iloc[-1]})
    if ends:
        drawing.axes[0].legend()
    said = "; ".join(f"{e['column']} ({e['line']}) from {e['first']:.3g} to {e['last']:.3g}" for e in ends)
    return picture(drawing, f"{caption} {said or 'NOT RUN'}.", ends)


def row(parts: Sequence[HTML]) -> HTML:
    """Pictures or tables side by side, as many as fit."""
    return HTML(PARTS.row([Markup(part.data) for part in parts]))


def check(answer, expected, hint: str) -> None:
    """Say how an exercise's answer stands; never an error, so that no exercise stops a run."""
    near = all(isinstance(one, int | float) for one in (answer, expected)) and abs(answer - expected) < 0.005
    wrong = "Replace None by your answer, and run the cell again" if answer is None else f"Not yet: {answer!r}. Hint: {hint}"
    print("Right." if near or str(answer) == str(expected) else f"{wrong}.")
