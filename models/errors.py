"""The error that a user can act on."""


class UserError(ValueError):
    """One sentence that names what is wrong and how to fix it; commands print it and exit with status 2."""
