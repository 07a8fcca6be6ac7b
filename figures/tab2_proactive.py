"""Table 2: proactive question answering, PAUC and duplicates by domain, and what only the kit can measure."""

import drawings
import tables

DOMAINS = ("WEB", "EGO", "TV", "VAD")
LINES = [
    ("VideoLLM-Online", {"model": "videollm-online"}, None),
    ("base model", None, {"model": "base"}),
    ("MMDuet; kit: threshold baseline", *[{"model": "threshold"}] * 2),
    ("MMDuet2 sft", *[{"model": "sft"}] * 2),
    ("MMDuet2 rl", *[{"model": "rl"}] * 2),
]

OURS = {"latency, s": "latency_s", "lucky share, of 1": "lucky_share", "reply turns": "reply_turns"}  # what only the kit measures


@drawings.table
def draw(run):
    """Table 2 beside the paper's; below it what only the kit measures: latency, lucky guesses, turns."""
    columns = [(f"[{domain}]", ("pauc", "duplicate"), {"domain": domain}, 1) for domain in DOMAINS]
    lines = LINES + [(name, None, {"model": name}) for name in drawings.strangers(run.rows("table2.csv"))]
    table = drawings.beside(
        run,
        "tab2_proactive",
        "Table 2. ProactiveVideoQA: PAUC (omega 0.5) / reply duplicates, percent",
        lines,
        columns,
        [
            drawings.RULE,
            "The paper's MMDuet and the kit's threshold baseline (base, data and steps of SFT) share a "
            "line: both decide by a threshold. Silence gives a PAUC of 25.",
        ],
    )
    rows = run.rows("table2.csv")
    for what, metric in OURS.items():
        for label, _, kit in lines:
            if kit:
                table.rows.append(
                    [
                        f"{what}: {label.replace('MMDuet; kit: ', '')}",
                        "kit, ours",
                        *(drawings.cell(rows, metric, 2, **kit, domain=domain) for domain in DOMAINS),
                    ]
                )
    watched = tables.select(rows, status="ok")
    table.rows.append(
        ["time between decisions (quantum), s", "kit, ours", *(drawings.cell(watched, "quantum_s", domain=domain) for domain in DOMAINS)]
    )
    wins = [domain for domain in DOMAINS if _pauc(rows, "threshold", domain) > _pauc(rows, "rl", domain)]
    if rows:
        table.notes.append(
            f"The threshold baseline has the higher PAUC than RL in: {', '.join(wins) or 'no domain'}."
        )
    if not run.procedural:
        table.notes.append(f"Latency and lucky share: {tables.NOT_RUN}, real videos have no hidden onsets.")
    table.notes.append(
        "Latency is taken over correct replies after the hidden onset; the quantum is the time between two "
        "decisions; lucky replies are correct although they come before the onset. All ours."
    )
    return table


def _pauc(rows, model, domain):
    """Mean PAUC over seeds; -1 where there is none."""
    values = [tables.number(row["pauc"]) for row in tables.select(rows, model=model, domain=domain)]
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else -1


if __name__ == "__main__":
    drawings.main(draw)
