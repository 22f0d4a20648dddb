"""Errors that are for people."""


class VtbenchError(Exception):
    """A mistake in what the user asked for: one line that says what was wrong and what is allowed.

    The command line prints it without a traceback and exits with 2.
    """
