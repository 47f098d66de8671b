"""The one error that is meant for the user's eyes."""


class UserError(Exception):
    """Something in a config, path, shape or file that the user can put right.

    The message is one line: what was found, what was expected, what to do. The
    command line prints it alone and exits with code 2; `--debug` adds the traceback.
    """
