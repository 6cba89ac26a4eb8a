"""What thrifty says when it cannot go on: what was asked, what was found, what to do."""


class ThriftyError(Exception):
    """Something outside thrifty's own code is wrong; the message says what to do about it.

    The command line prints it as one line and leaves with status 2.
    """


class SettingError(ThriftyError):
    """A name or a value that was asked for does not exist."""


class DataError(ThriftyError):
    """A data set or a text is missing, unusable, or not the one it should be."""


class ModelError(ThriftyError):
    """A model cannot be loaded, or has a part that thrifty does not support."""


class OutputError(ThriftyError):
    """A result cannot be written where it was asked to go."""
