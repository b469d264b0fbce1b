"""The one exception for bad input."""


class InputError(ValueError):
    """Input that a user can mend; the message names the thing, its value and the way out.

    The doors print it as one line and exit with status 2; of an OSError they print a line too, and
    exit with status 1. Every other exception is a bug and keeps its traceback.
    """
