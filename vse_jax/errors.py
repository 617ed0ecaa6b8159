"""The one exception a user is meant to see."""


class InputError(Exception):
    """Bad input: the message is one line that names the file, field or line.

    `main.py` prints it on stderr and exits with code 1; everything else is a bug and
    keeps its traceback.
    """
