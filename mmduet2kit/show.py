"""What the notebooks show: static pictures with alt text and their data as a table; a slider only on top of them."""

import base64
import inspect
import io
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import matplotlib
import pandas as pd
from IPython.display import HTML, display
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
from tables import advantages  # isort: skip

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "av", "numpy")
PARTS = TEMPLATES.get_template("show.html").module
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
    """A drawing with its alt text below it, and the rows it was drawn from, folded away."""
    if isinstance(drawing, Figure):
        buffer = io.BytesIO()
        drawing.savefig(buffer, format=kind.split("+")[0], bbox_inches="tight")
        drawing = buffer.getvalue()
    return HTML(PARTS.picture(base64.b64encode(drawing).decode(), kind, alt, rows))


def figure(name: str, profile: Profile) -> HTML:
    """Draw a figure or table of the paper (a script of figures/) from the run's results files, and show it."""
    draw = report.scripts()[name].draw
    paths = {path.suffix: path for path in draw(profile.results, profile.run_dir / "figures")}
    if ".svg" in paths:
        return picture(paths[".svg"].read_bytes(), paths[".txt"].read_text().strip(), read_csv(paths[".csv"]))
    made = draw.table(profile.results)
    rows = [dict(zip([header or "model" for header in made.header], row, strict=True)) for row in made.rows]
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
            events.append((f"{time:g} s", "user", f"[{len(turn.frames)} frame{'s' * (len(turn.frames) != 1)}] {turn.text or ''}"))
        if turn.reply is not None:
            events.append((f"{time:g} s", "silent" if turn.reply == NO_REPLY else "assistant", turn.reply))
    rows = []
    for _, run in groupby(enumerate(events), key=lambda event: -1 if event[1][1] == "silent" else event[0]):
        (when, who, text), *rest = [event for _, event in run]
        rows.append((f"{when} to {rest[-1][0]}", who, f"{text} x {len(rest) + 1}") if rest else (when, who, text))
    return HTML(PARTS.dialogue(shown.id, rows[:most], COLOR))


def tokens(encoder, encoded, most: int = 400) -> HTML:
    """Encoded text of one dialogue; what has a label is marked and stands in double brackets."""
    pairs = list(zip(encoded.ids, encoded.labels, strict=True))[:most]
    runs = [(learned, [token for token, _ in run]) for learned, run in groupby(pairs, key=lambda pair: pair[1] >= 0)]
    return HTML(PARTS.tokens([(learned, encoder.tokenizer.decode(run)) for learned, run in runs]))


def strip(dataset, shown: Dialogue, caption: str, said: Sequence[tuple[float, str]] | None = None) -> HTML:
    """Frames over a timeline: what the user says, gold spans, turns, and replies (`said`, or the dialogue's own)."""
    timed = list(zip(shown.times(), shown.turns))
    if said is None:
        said = [(time, turn.reply) for time, turn in timed if turn.reply not in (None, NO_REPLY)]
    events = [("user", time, time, turn.text) for time, turn in timed if turn.text]
    events += [("gold span", g.start, g.end, g.text) for g in shown.gold]
    events += [("reply", time, time, text) for time, text in said]
    drawing, end, indices = Figure(figsize=(10, 2.6), layout="constrained"), timed[-1][0], shown.frame_indices()
    axes, indices = drawing.subplots(), indices[:: -(-len(indices) // 10)]
    wide = end / len(indices)
    for k, image in enumerate(dataset.frames(shown, indices)):
        axes.imshow(image, extent=((k + 0.04) * wide, (k + 0.96) * wide, 2.2, 4), aspect="auto")
    decided = [time for time, turn in timed if turn.frames]
    axes.plot(decided, [0.3] * len(decided), "|", color=style.GREY)
    for what, start, stop, _ in events:
        if what == "gold span":
            axes.barh(1, stop - start, 0.45, start, color=style.GREEN, alpha=0.4)
        else:
            mark, color, y = ("v", style.ORANGE, 1.7) if what == "user" else ("D", style.BLUE, 0.3)
            axes.plot(start, y, marker=mark, color=color, clip_on=False)
    axes.set(xlim=(0, end), ylim=(0, 4), yticks=[0.3, 1, 1.7, 3.1], xlabel="video time, s",
             yticklabels=["turns (|), replies", "gold spans", "user speaks", "frames"])  # fmt: skip
    asked = next((f"“{turn.text}” " for turn in shown.turns if turn.text), "")
    counts = f"gold spans: {len(shown.gold)}, replies: {len(said)}"
    rows = [dict(zip(("what", "from", "to", "text"), event)) for event in events]
    return picture(drawing, f"{caption} {asked}{len(indices)} frames over {end:g} s; {counts}.", rows, "png")


def pauc_area(span, replies, max_score: float, title: str, initial: float = 0.5) -> HTML:
    """The step line of scores over a span, and the area that PAUC (omega 0) measures; replies [(time, score)]."""
    corners = [(span[0], initial), *sorted((t, s) for t, s in replies if span[0] <= t <= span[1])]
    times, scores = zip(*corners, (span[1], corners[-1][1]))
    drawing = Figure(figsize=(3.2, 2.2), layout="constrained")
    axes = drawing.subplots()
    axes.fill_between(times, scores, step="post", color=style.SKY, alpha=0.45, linewidth=0)
    axes.step(times, scores, where="post", color=style.BLUE)
    axes.plot(times[1:-1], scores[1:-1], "o", color=style.BLUE, clip_on=False)
    axes.set(xlim=span, ylim=(0, max_score), xlabel="video time, s", ylabel="score", title=title)
    value = 100 * pauc(span, replies, max_score, 0.0, initial)
    said = ", ".join(f"score {s:g} at {t:g} s" for t, s in replies) or "no reply"
    return picture(drawing, f"{title}: {said}; PAUC {value:.1f}.")


def reward_terms(rewards: Mapping[str, Reward], caption: str, **more: Sequence) -> HTML:
    """One row a rollout: the four terms, their weighted sum, and more columns."""
    rows = [{"rollout": name, "r_PAUC": r.pauc, "r_rep": r.rep, "r_in_span": r.in_span, "r_pfx": r.pfx,
             "weighted sum": r.total} for name, r in rewards.items()]  # fmt: skip
    return table([row | {key: column[k] for key, column in more.items()} for k, row in enumerate(rows)], caption)


def group(rollouts: Sequence, caption: str) -> HTML:
    """One prompt's rollouts with their rewards and advantages: (reward - group mean) / group deviation."""
    said = ["; ".join(f"{t:g} s: {text}" for t, text in r.turns if text != NO_REPLY) or "silent" for r in rollouts]
    rewards = {f"{k}": r.reward for k, r in enumerate(rollouts, 1)}
    return reward_terms(rewards, caption, advantage=advantages([r.reward.total for r in rollouts]), replies=said)


def curves(paths: Mapping[str, Path], columns: Sequence[str], caption: str) -> HTML:
    """Columns of CSV logs over the step, a panel a column and a line a file; missing files are left out."""
    wide, ends = 3 if len(columns) % 3 == 0 else min(len(columns), 4), []
    high = -(-len(columns) // wide)
    drawing = Figure(figsize=(max(4.5, 3 * wide), 2.3 * high), layout="constrained")
    for axes, column in zip(drawing.subplots(high, wide, squeeze=False).flat, columns):
        axes.set(title=column, xlabel="step")
        for k, (label, path) in enumerate(paths.items()):
            log = pd.read_csv(path).set_index("step") if path.exists() else pd.DataFrame()
            points = log[column].dropna() if column in log else ()
            if len(points):
                axes.plot(points, label=label, **style.SERIES[k % 4] | {"marker": "", "linewidth": 1.2})
                ends.append({"line": label, "column": column, "first": points.iloc[0], "last": points.iloc[-1]})
    if ends:
        drawing.axes[0].legend()
    said = "; ".join(f"{e['column']} ({e['line']}) from {e['first']:.3g} to {e['last']:.3g}" for e in ends)
    return picture(drawing, f"{caption} {said or 'NOT RUN'}.", ends)


def interactive_or_static(fn: Callable, values: Sequence, default, interactive: bool) -> None:
    """Show fn(value) for the first value, the default and the last, always; `interactive` adds a slider over all."""
    display(HTML(PARTS.row([Markup(fn(value).data) for value in dict.fromkeys((values[0], default, values[-1]))])))
    if interactive:
        import ipywidgets

        ipywidgets.interact(fn, value=ipywidgets.SelectionSlider(options=list(values), value=default))


def check(answer, expected, hint: str) -> None:
    """Say how an exercise's answer stands; never an error, so that no exercise stops a run."""
    near = isinstance(answer, float) and abs(answer - expected) < 0.005
    wrong = "Replace None by your answer" if answer is None else f"Not yet: {answer!r}"
    print("Right." if near or answer == expected else f"{wrong}. Hint: {hint}.")
