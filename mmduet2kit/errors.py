"""The one exception that means: the user's input is at fault, not the kit."""


class UserError(Exception):
    """Bad input. Its text is one sentence: what is wrong, where, and what to do about it.

    The command line prints it without a traceback and exits with 2.
    """
