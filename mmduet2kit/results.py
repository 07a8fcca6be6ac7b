"""From evaluation files (results/eval/*.json) to the CSV files of the tables; a missing run is NOT RUN, never blank."""

from .files import read_csv, read_json, write_csv
from .profile import Profile

PROACTIVE = ("pauc", "duplicate", "reply_turns")
DOMAINS = ("WEB", "EGO", "TV", "VAD")
SUMS = (
    "spans", "pauc_sum", "dup_spans", "dup_sum", "multi_spans", "reply_turns", "correct", "lucky", "latency_sum",
    "latency_n",
)  # fmt: skip


def _runs(profile: Profile, model: str):
    """(seed, evaluation or None) for every seed of the profile."""
    for seed in profile.seeds:
        path = profile.results / "eval" / f"{model}-seed{seed}.json"
        yield seed, read_json(path) if path.exists() else None


def _proactive(found: dict | None, domain: str, interval: float) -> dict | None:
    return found and next(
        (part for part in found["proactive"] if (part["domain"], part["interval"]) == (domain, interval)), None
    )


def _rounded(row: dict) -> dict:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def join_seeds(profile: Profile, name: str) -> list[dict]:
    """Put <name>_seed<k>.csv of all seeds together as <name>.csv (figure5, threshold_sweep); returns the rows."""
    paths = [profile.results / f"{name}_seed{seed}.csv" for seed in profile.seeds]
    rows = [row for path in paths if path.exists() for row in read_csv(path)]
    if rows:
        write_csv(profile.results / f"{name}.csv", rows)
    return rows


def full_arm(profile: Profile) -> str:
    """The model with the full reward at the ablation arms' number of steps: `rl` itself, or `rl-short`, kept on the way."""
    return "rl" if profile.ablation.rl_steps == profile.rl.steps else "rl-short"


class Tables:
    """Writes tables 2 to 7 and per_video.csv of a profile's run, as far as it has come."""

    def __init__(self, profile: Profile):
        self.profile, self.interval = profile, profile.video.test_interval
        self.videos: list[dict] = []

    def _write(self, name: str, rows: list[dict], columns: list[str]) -> None:
        filled = [{c: row.get(c, "") for c in columns} for row in map(_rounded, rows)]
        write_csv(self.profile.results / f"{name}.csv", filled, columns)

    def _row(self, experiment: str, model: str, label: str, domain: str, seed: int, found, interval: float) -> dict:
        part = _proactive(found, domain, interval)
        if part is None:
            return {"status": "NOT RUN"}
        keys = {"experiment": experiment, "model": label, "setting": f"{interval:g}s", "domain": domain, "seed": seed}
        self.videos += [
            keys | {"question_id": row["question_id"]} | {s: row[s] for s in SUMS} for row in part["rows"]
        ]
        return part["pooled"]

    def write(self) -> None:
        """Write everything."""
        self.table2()
        self.table3()
        self.table4()
        self.table5()
        self.table6()
        self.table7()
        self._write("per_video", self.videos,
                    ["experiment", "model", "setting", "domain", "seed", "question_id", *SUMS])  # fmt: skip

    def table2(self) -> None:
        rows = [
            {"model": model, "domain": domain, "seed": seed}
            | self._row("T2", model, model, domain, seed, found, self.interval)
            for model in ("base", "sft", "threshold", "rl")
            for seed, found in _runs(self.profile, model)
            for domain in DOMAINS
        ]
        self._write("table2", rows, ["model", "domain", "seed", *PROACTIVE, "latency_s", "quantum_s", "lucky_share",
                                     "correct", "spans", "multi_spans", "status"])  # fmt: skip

    def _extra(self, name: str, models: tuple[str, ...]):
        for model in models:
            for seed, found in _runs(self.profile, model):
                part = (found or {}).get(name)
                yield {"model": model, "seed": seed, "status": "ok" if part else "NOT RUN"}, part or {}

    def table3(self) -> None:
        rows = [row | part for row, part in self._extra("speed", ("threshold", "rl"))]
        self._write("table3", rows, ["model", "seed", "reply_turns", "reply_turns_std", "wall_s", "videos", "decisions",
                                     "status"])  # fmt: skip

    def table4(self) -> None:
        rows = []
        for row, part in self._extra("offline", ("base", "sft", "rl")):
            for task in ("caption", "attribute_qa"):
                accuracy, n = part.get(task, ("", ""))
                rows.append(row | {"task": task, "accuracy": accuracy and 100 * accuracy, "n": n})
        self._write("table4", rows, ["model", "seed", "task", "accuracy", "n", "status"])

    def table5(self) -> None:
        rows = []
        for row, part in self._extra("po", ("threshold", "sft", "rl")):
            rows.append(row | {k: v if k == "n" else 100 * v for k, v in part.items()})
        self._write("table5", rows, ["model", "seed", "accuracy_first_reply", "accuracy_time", "accuracy_time_content",
                                     "n", "status"])  # fmt: skip

    def table6(self) -> None:
        """All rows at the arms' number of steps: the full reward is the main run's model at that step."""
        models = {"rl": full_arm(self.profile)} | {f"rl-{arm}": f"rl-{arm}" for arm in self.profile.ablation.arms}
        rows = [
            {"model": label, "domain": domain, "seed": seed}
            | self._row("T6", model, label, domain, seed, found, self.interval)
            for label, model in models.items()
            for seed, found in _runs(self.profile, model)
            for domain in ("WEB", "EGO")
        ]
        self._write("table6", rows, ["model", "domain", "seed", *PROACTIVE, "status"])

    def table7(self) -> None:
        """SFT at each interval without RL; RL at each interval on the SFT of the profile's; each tested at both."""
        base, fine = self.profile.video.train_interval, self.profile.video.test_interval
        models = {
            (fine, ""): f"sft-{fine:g}s", (base, ""): "sft",
            (base, fine): f"rl-{fine:g}s", (base, base): full_arm(self.profile),
        }  # fmt: skip
        rows = [
            {"sft_interval": sft, "rl_interval": rl, "test_interval": test, "domain": domain, "seed": seed}
            | self._row("T7", model, f"sft{sft:g}s" + (f"-rl{rl:g}s" if rl else ""), domain, seed, found, test)
            for (sft, rl), model in models.items()
            for seed, found in _runs(self.profile, model)
            for test in (fine, base)
            for domain in ("WEB", "EGO")
        ]
        self._write("table7", rows, ["sft_interval", "rl_interval", "test_interval", "domain", "seed", *PROACTIVE,
                                     "status"])  # fmt: skip
