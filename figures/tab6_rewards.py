"""Table 6: what each reward term is for."""

import drawings


@drawings.table
def draw(run):
    """Table 6: RL without one term of the reward; the fourth arm is the kit's."""
    arms = [
        ("MMDuet2 rl", "rl"),
        ("- r_rep", "rl-no_rep"),
        ("- r_pfx", "rl-no_pfx"),
        ("- r_in_span", "rl-no_in_span"),
    ]
    lines = [
        *((label, {"model": model}, {"model": model}) for label, model in arms),
        ("- r_PAUC (ours)", None, {"model": "rl-no_pauc"}),
        ("released code's reward (ours)", None, {"model": "rl-upstream"}),
        ("paper's, released code's denominators (ours)", None, {"model": "rl-denominators"}),
    ]
    columns = [
        (f"[{domain}]", ("pauc", "duplicate", "reply_turns"), {"domain": domain}, 1)
        for domain in ("WEB", "EGO")
    ]
    return drawings.beside(
        run,
        "tab6_rewards",
        "Table 6. Reward ablation: PAUC / reply duplicates, percent / reply turns",
        lines,
        columns,
        [
            drawings.RULE,
            "FAIL in the kit: at more than evaluate.reply_every_turn_budget of all decisions, whether it concerns the question or not.",
            "The paper removes three of the four terms; the row without r_PAUC is ours, and so are the one with all terms "
            "as the released code computes them, and the one in which only r_in_span and r_pfx divide as it does, by turns "
            "instead of replies. All of the kit's "
            "rows were trained for the same number of steps (profile: ablation.rl_steps).",
        ],
    )


if __name__ == "__main__":
    drawings.main(draw)
