"""Table 7: frame intervals of SFT, RL and inference."""

import drawings


@drawings.table
def draw(run):
    """Table 7: a line per inference interval, a column per training."""
    trained = [("WEB", 1, ""), ("WEB", 2, 1), ("WEB", 2, 2), ("EGO", 2, 1), ("EGO", 2, 2)]
    columns = [
        (
            f"[{domain}] SFT {sft} s, RL {f'{rl} s' if rl else '-'}",
            ("pauc", "duplicate"),
            {"domain": domain, "sft_interval": sft, "rl_interval": rl},
            1,
        )
        for domain, sft, rl in trained
    ]
    lines = [(f"inference {test} s", *[{"test_interval": test}] * 2) for test in (1, 2)]
    return drawings.beside(
        run,
        "tab7_intervals",
        "Table 7. Frame intervals: PAUC / reply duplicates, percent",
        lines,
        columns,
        [
            "The paper's FAIL at SFT 1 s: the model collapses to NO REPLY at every turn; the kit prints numbers there, 25.0 / - for "
            "silence. A FAIL of the kit's: a reply at almost every turn.",
            drawings.RULE,
            "Kit: SFT at 1 s has ablation.sft_steps steps, both RL columns ablation.rl_steps, as the profile says; "
            "where these are shorter than the main runs, a collapse may also come from that.",
        ],
    )


if __name__ == "__main__":
    drawings.main(draw)
