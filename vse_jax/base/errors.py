"""The one exception that a user is meant to see, and the check that raises it most."""


class InputError(Exception):
    """Bad input: the message is one line that names the file, field or line.

    `main.py` prints it on stderr and exits with code 1; everything else is a bug and
    keeps its traceback.
    """


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises InputError unless the config's `field` holds one of `choices`."""
    if value not in choices:
        raise InputError(f"{field}: {value!r} is none of {', '.join(choices)}")
