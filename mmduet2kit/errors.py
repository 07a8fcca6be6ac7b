"""The one exception that means: the user's input is at fault, not the kit."""

import os


class UserError(Exception):
    """Bad input. Its text is one sentence: what is wrong, where, and what to do about it.

    The command line prints it without a traceback and exits with 2.
    """


def whole_number(variable: str) -> int | None:
    """What an environment variable says, None where it is not set; UserError where that is no number of 0, 1, 2, ..."""
    wanted = os.environ.get(variable)
    if wanted is not None and not wanted.isdecimal():
        raise UserError(f"{variable}={wanted!r} is no whole number: unset it, or give 0, 1, 2, ...")
    return None if wanted is None else int(wanted)
