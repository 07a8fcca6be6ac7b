"""From evaluation files (results/eval/*.json) to the CSV files of the tables; a missing run is NOT RUN, never blank."""

from collections.abc import Iterator, Mapping

from mmduet2kit.corpus.build import Dataset
from mmduet2kit.dialogue import NO_REPLY
from mmduet2kit.files import read_csv, read_json, write_csv
from mmduet2kit.profile import Profile

DOMAINS = ("WEB", "EGO", "TV", "VAD")
FORMS = {"turns": "sft", "frames": "sft-frames"}  # chat format: the model that is trained in it
SUMS = "spans pauc_sum dup_spans dup_sum multi_spans reply_turns correct lucky latency_sum latency_n".split()
COLUMNS = {
    "table2": "model domain seed pauc duplicate reply_turns latency_s quantum_s lucky_share correct spans multi_spans "
    "status",
    "table3": "model seed reply_turns reply_turns_std wall_s videos decisions status",
    "table4": "model seed task accuracy n status",
    "table5": "model seed accuracy_first_reply accuracy_time accuracy_time_content n status",
    "table6": "model domain seed pauc duplicate reply_turns multi_spans status",
    "table7": "sft_interval rl_interval test_interval domain seed pauc duplicate reply_turns multi_spans status",
    "formats": "chat_form domain seed pauc duplicate reply_turns tokens_per_min ms_per_turn ms_per_turn_ahead status",
    "silence": "sft_interval no_reply_weight silent_turns answer_turns test_interval domain seed pauc reply_turns status",
    "per_video": f"experiment model sft_interval rl_interval test_interval domain seed question_id {' '.join(SUMS)}",
}


def join_seeds(profile: Profile, name: str) -> list[dict]:
    """Put <name>_seed<k>.csv of all seeds together as <name>.csv (figure5, threshold_sweep); returns the rows."""
    paths = [profile.results / f"{name}_seed{seed}.csv" for seed in profile.seeds]
    rows = [row for path in paths if path.exists() for row in read_csv(path)]
    if rows:
        write_csv(profile.results / f"{name}.csv", rows)
    return rows


def full_arm(profile: Profile) -> str:
    """The model with the full reward at the ablation arms' number of steps: `rl`, or `rl-short`, kept on the way."""
    return "rl" if profile.ablation.rl_steps == profile.rl.steps else "rl-short"


class Tables:
    """Writes tables 2 to 7 and per_video.csv of a profile's run, as far as it has come."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self.rows: dict[str, list[dict]] = {}

    def write(self) -> None:
        """Write everything.

        Table 6: all rows at the arms' number of steps; the full reward is the main run's model at that step.
        Table 7: SFT at each interval without RL; RL at each interval on the SFT of the profile's; each tested at both.
        """
        coarse, fine = self.profile.video.train_interval, self.profile.video.test_interval
        full, self.rows = full_arm(self.profile), {name: [] for name in COLUMNS}
        strangers = sorted({p.name.rpartition("-seed")[0] for p in (self.profile.results / "eval").glob("*--*-seed*.json")})  # anybody's checkpoints
        for model in ("base", "sft", "threshold", "rl", *strangers):
            self._watched(2, model, fine, DOMAINS, {"model": model})
        for label, model in {"rl": full, **{f"rl-{arm}": f"rl-{arm}" for arm in self.profile.ablation.arms}}.items():
            self._watched(6, model, fine, DOMAINS[:2], {"model": label})
        trained = {(fine, ""): f"sft-{fine:g}s", (coarse, ""): "sft",
                   (coarse, fine): f"rl-{fine:g}s", (coarse, coarse): full}  # fmt: skip
        for (sft, rl), model in trained.items():
            for test in (fine, coarse):
                keys = {"sft_interval": sft, "rl_interval": rl, "test_interval": test}
                self._watched(7, model, test, DOMAINS[:2], keys)
        if self.profile.ablation.no_reply_weights:
            self._silence(fine, coarse)
        for form, model in FORMS.items():
            self._watched("formats", model, fine, DOMAINS[:2], {"chat_form": form})
        self._time_formats()
        self.rows["table3"] += (row | part for row, part in self._extra("speed", "threshold", "rl"))
        for row, part in self._extra("offline", "base", "sft", "rl"):
            for task in ("caption", "attribute_qa"):
                accuracy, n = part.get(task, ("", ""))
                self.rows["table4"].append(row | {"task": task, "accuracy": accuracy and 100 * accuracy, "n": n})
        for name in ("po", "po_poll"):  # the official polling protocol is beside the kit's only where it was asked for
            for row, part in self._extra(name, "threshold", "sft", "rl", *strangers):
                if part or name == "po":
                    asked = {"model": row["model"] + ":poll"} if name == "po_poll" else {}
                    self.rows["table5"].append(row | asked | {k: v if k == "n" else 100 * v for k, v in part.items()})
        for name, columns in COLUMNS.items():
            if name == "silence" and not self.rows[name]:
                continue
            filled = [{c: _tidy(row.get(c, "")) for c in columns.split()} for row in self.rows[name]]
            write_csv(self.profile.results / f"{name}.csv", filled, columns.split())

    def _runs(self, model: str) -> Iterator[tuple[int, dict]]:
        """(seed, evaluation) for every seed of the profile; {} for one that is missing."""
        for seed in self.profile.seeds:
            path = self.profile.results / "eval" / f"{model}-seed{seed}.json"
            yield seed, read_json(path) if path.exists() else {}

    def _silence(self, *intervals: float) -> None:
        """SFT at each interval and NO REPLY weight on WEB, and how many turns of its data are silent and how many answer."""
        weights = sorted({self.profile.sft.no_reply_weight, *self.profile.ablation.no_reply_weights})
        for interval in intervals:
            turns = [turn.reply for d in Dataset(self.profile.data).sft(interval) for turn in d.turns if turn.reply is not None]
            data = {"silent_turns": turns.count(NO_REPLY), "answer_turns": len(turns) - turns.count(NO_REPLY)}
            for weight in weights:
                model = f"sft{self.profile.sft_arm(interval, weight)}"
                keys = {"sft_interval": interval, "no_reply_weight": weight, "test_interval": intervals[0]}
                self._watched("silence", model, intervals[0], DOMAINS[:1], keys | data)

    def _time_formats(self) -> None:
        """Milliseconds a turn of both chat formats, one stream at a time, beside the PAUC of the domain that was timed (WEB)."""
        for row in self.rows["formats"]:
            found = dict(self._runs(FORMS[row["chat_form"]]))[row["seed"]]
            for name, column in (("speed", "ms_per_turn"), ("ahead", "ms_per_turn_ahead")):
                if row["domain"] == DOMAINS[0] and name in found:
                    row[column] = 1000 * found[name]["wall_s"] / found[name]["decisions"]

    def _watched(self, table: int | str, model: str, interval: float, domains, keys: Mapping) -> None:
        """Add a model's rows at a test interval to a table, and its videos to per_video, both under `keys`."""
        for seed, found in self._runs(model):
            parts = {part["domain"]: part for part in found.get("proactive", ()) if part["interval"] == interval}
            for domain in domains:
                part = parts.get(domain, {"rows": [], "pooled": {"status": "NOT RUN"}})
                at = {**keys, "domain": domain, "seed": seed}
                self.rows[table if table in COLUMNS else f"table{table}"].append(at | part["pooled"])
                if table not in COLUMNS:
                    self.rows["per_video"] += (row | at | {"experiment": f"T{table}"} for row in part["rows"])

    def _extra(self, name: str, *models: str) -> Iterator[tuple[dict, dict]]:
        """(first columns of a row, what `--extras name` measured or {}) for every model and seed."""
        for model in models:
            for seed, found in self._runs(model):
                part = found.get(name, {})
                yield {"model": model, "seed": seed, "status": "ok" if part else "NOT RUN"}, part


def _tidy(value):
    return round(value, 4) if isinstance(value, float) else value
