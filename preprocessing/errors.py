"""The errors that are their user's to mend."""


class ReportedError(Exception):
    """What a command line ends with. The message names the thing that is wrong and says what to do about it."""
