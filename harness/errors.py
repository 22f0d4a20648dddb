"""Errors that are for people."""


class VtbenchError(Exception):
    """A mistake in what the user asked for: one line that says what was wrong and what is allowed.

    What cannot be printed (a line break in a file's name, say) is escaped, and the line ends after LONGEST characters.
    The command line prints it without a traceback and exits with 2.
    """

    LONGEST = 2000

    def __init__(self, message: str) -> None:
        line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in message[: self.LONGEST + 1])
        super().__init__(line if len(line) <= self.LONGEST else line[: self.LONGEST] + " …")
