"""core/errors.py: the one exception for mistakes that a user can mend."""


class UserError(Exception):
    """One sentence that says what is wrong and what to do.

    The commands print it and exit with code 2.
    """
