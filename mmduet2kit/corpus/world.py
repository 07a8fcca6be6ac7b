"""The procedural world: what happens in a video, and the language that speaks about it.

A video is a list of scenes. In each, one thing (a colour, a shape) comes into view at a hidden onset and is in view until
the scene ends. An annotator knows the scene's coarse span and its caption; the onset is kept apart (design: only
evaluation and report may open it). Four domains mirror ProactiveVideoQA's: WEB (scene after scene), EGO (long, many
steps, a moving camera), TV (subtitles arrive as user turns), VAD (a static camera, one rare anomaly).
"""

import re
from dataclasses import dataclass

import numpy as np

from ..dialogue import SUBTITLE
from ..profile import World

COLOURS = {
    "red": (215, 30, 30), "orange": (245, 140, 20), "yellow": (240, 230, 40), "green": (30, 165, 50),
    "cyan": (60, 215, 225), "blue": (35, 60, 220), "purple": (150, 50, 190), "white": (250, 250, 250),
}  # fmt: skip
ROUND, CORNERED = ("circle", "ring", "moon"), ("bar", "post", "cross")
SHAPES = ROUND + CORNERED
MOTIONS = {
    "left": "comes in from the left side and drifts slowly across the picture",
    "right": "comes in from the right side and drifts slowly across the picture",
    "top": "drops in from the top edge and sinks slowly through the picture",
    "bottom": "rises up from the bottom edge and climbs slowly through the picture",
    "still": "shows up right in the middle and stays at its place in the picture",
}
SUBTITLES = (
    "I did not think you would come.", "We should leave before it rains.", "What did she say to you?",
    "That is not what we agreed on.", "Give me one more minute.", "Nobody told me about this.",
)  # fmt: skip
Fact = tuple[str, str, str | None]  # colour, shape, motion (None: not said)

_FACT = re.compile(rf"\b(?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)})\b(?: (?P<motion>{'|'.join(MOTIONS.values())}))?")
_PHRASES = {phrase: motion for motion, phrase in MOTIONS.items()}


def facts(text: str) -> frozenset[Fact]:
    """The facts that a text states, by the world's grammar; an unparseable text states none."""
    return frozenset((m["colour"], m["shape"], _PHRASES[m["motion"]] if m["motion"] else None) for m in _FACT.finditer(text))


def sentence(colour: str, shape: str, motion: str) -> str:
    """The caption that states this fact."""
    return f"{article(colour)} {colour} {shape} {MOTIONS[motion]}.".capitalize()


def article(colour: str) -> str:
    return "an" if colour[0] in "aeiou" else "a"


@dataclass(frozen=True)
class Scene:
    """One scene: coarse span [start, end] and hidden onset in seconds, and the thing that it shows."""

    start: float
    end: float
    onset: float
    colour: str
    shape: str
    motion: str

    @property
    def caption(self) -> str:
        return sentence(self.colour, self.shape, self.motion)


@dataclass(frozen=True)
class Plan:
    """What happens in one video: everything that drawing and annotation need, drawn from one seed."""

    name: str
    domain: str
    duration: float
    scenes: tuple[Scene, ...]
    subtitles: tuple[tuple[float, str], ...]
    seed: tuple[int, ...]


def plan(world: World, split: str, domain: str, index: int) -> Plan:
    """Draw video `index` of a split and domain; the same arguments give the same plan."""
    spec = world.domains[domain]
    seed = (world.seed, *f"{split}/{domain}".encode(), index)
    rng = np.random.default_rng(seed)
    duration = round(spec.length * rng.uniform(0.9, 1.1) * world.fps) / world.fps  # whole pictures
    things = [(c, s) for c in COLOURS for s in SHAPES]
    rng.shuffle(things)
    scenes: list[Scene] = []
    most = spec.scenes[1] if spec.scenes else len(things)
    time = rng.uniform(*spec.gap)
    while len(scenes) < most:
        length = rng.uniform(*spec.scene)
        if time + length > duration:
            break
        colour, shape = things[len(scenes)]
        onset = time + length * rng.uniform(*spec.onset)
        motion = str(rng.choice(list(MOTIONS)))
        scenes.append(Scene(_tidy(time), _tidy(time + length), _tidy(onset), colour, shape, motion))
        time += length + rng.uniform(*spec.gap)
    subtitles = []
    if domain == "TV":
        time = rng.uniform(1, 4)
        while time < duration - 1:
            subtitles.append((_tidy(time), SUBTITLE + str(rng.choice(SUBTITLES))))
            time += rng.uniform(3, 9)
    return Plan(f"{domain}_{index:05d}", domain, _tidy(duration), tuple(scenes), tuple(subtitles), seed)


def _tidy(seconds: float) -> float:
    return round(float(seconds), 2)


def draw(world: World, video: Plan):
    """Yield the pictures of a video, uint8 [side, side, 3], one every 1 / fps seconds."""
    rng = np.random.default_rng((*video.seed, 1))
    side, unit = world.side, world.side / 112
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / unit
    noise = rng.normal(0, world.noise, (8, side, side, 1)).astype(np.float32)
    static = video.domain == "VAD"
    ground = _ground(rng)
    clutter = [_Clutter(rng) for _ in range(rng.integers(*world.distractors, endpoint=True) + (2 if static else 0))]
    places = [rng.uniform(-16, 16) for _ in video.scenes]
    sizes = [rng.uniform(22, 28) for _ in video.scenes]
    current = -1
    for number in range(int(round(video.duration * world.fps))):
        time = number / world.fps
        scene = next((k for k, s in enumerate(video.scenes) if s.start <= time < s.end), None)
        if scene is not None and scene != current:
            current = scene
            if video.domain in ("clip", "train_web", "WEB", "TV", "PO"):  # a cut: new ground, new clutter
                ground = _ground(rng)
                clutter = [_Clutter(rng) for _ in range(rng.integers(*world.distractors, endpoint=True))]
        pan = 8 * np.sin(time / 5) if video.domain in ("train_ego", "EGO") else 0.0  # a camera that moves
        picture = ground(x + pan, y)
        for item in clutter:
            item.paint(picture, x, y, time, pan)
        if scene is not None and time >= video.scenes[scene].onset:
            thing = video.scenes[scene]
            _paint(picture, x, y, thing.shape, COLOURS[thing.colour], sizes[scene], *_place(thing.motion, time - thing.onset, places[scene]))
        yield np.clip(picture + noise[number % 8], 0, 255).astype(np.uint8)


def _place(motion: str, since: float, across: float) -> tuple[float, float]:
    """Centre (x, y) on a 112 x 112 picture, `since` seconds after the onset: in within a second, then a slow drift."""
    if motion == "still":
        return 56 + across / 2, 56 - across / 2
    along = -28 + 56 * min(since / 0.75, 1.0) + 2.0 * max(since - 0.75, 0.0)
    return {"left": (along, 56 + across), "right": (112 - along, 56 + across), "top": (56 + across, along), "bottom": (56 + across, 112 - along)}[motion]


def _ground(rng):
    """A muted, tilted gradient, as a function of the grid."""
    tone, slope = rng.uniform(60, 120), rng.uniform(-0.3, 0.3, 2).astype(np.float32)
    tint = np.float32(tone) + rng.uniform(-8, 8, 3).astype(np.float32)
    return lambda x, y: (slope[0] * (x - 56) + slope[1] * (y - 56))[..., None] + tint


class _Clutter:
    """A small grey thing that wanders: it has a shape but no colour, and no question asks about it."""

    def __init__(self, rng):
        self.shape = str(rng.choice(SHAPES))
        self.grey = float(rng.choice([rng.uniform(20, 50), rng.uniform(140, 170)]))
        self.size = rng.uniform(6, 10)
        self.start, self.speed = rng.uniform(10, 102, 2), rng.uniform(-5, 5, 2)

    def paint(self, picture, x, y, time, pan):
        place = 112 - np.abs((self.start + self.speed * time) % 224 - 112)
        _paint(picture, x, y, self.shape, (self.grey,) * 3, self.size, place[0] - pan, place[1])


def _paint(picture, x, y, shape: str, colour, size: float, cx: float, cy: float) -> None:
    """Paint a shape of half-width `size` (on the 112 grid) around (cx, cy), edges softened."""
    scale, reach = len(picture) / 112, size * 1.2 + 1
    rows = slice(max(0, int((cy - reach) * scale)), max(0, int((cy + reach) * scale) + 1))
    columns = slice(max(0, int((cx - reach) * scale)), max(0, int((cx + reach) * scale) + 1))
    u, v = (x[rows, columns] - cx) / size, (y[rows, columns] - cy) / size
    radius = np.hypot(u, v)
    if shape == "circle":
        inside = 1 - radius
    elif shape == "ring":
        inside = 0.2 - np.abs(radius - 0.8)
    elif shape == "moon":
        inside = np.minimum(1 - radius, np.hypot(u - 0.55, v) - 0.8)
    elif shape == "bar":  # lies
        inside = np.minimum(1.1 - np.abs(u), 0.4 - np.abs(v))
    elif shape == "post":  # stands
        inside = np.minimum(0.4 - np.abs(u), 1.1 - np.abs(v))
    else:
        inside = np.maximum(np.minimum(0.3 - np.abs(u), 1 - np.abs(v)), np.minimum(0.3 - np.abs(v), 1 - np.abs(u)))
    cover = np.clip(inside * size / 1.5 + 0.5, 0, 1)[..., None]
    part = picture[rows, columns]
    part += cover * (np.asarray(colour, np.float32) - part)
