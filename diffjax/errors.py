"""The exception for errors that the user can fix."""


class UserError(Exception):
    """A wrong config, path, shape or file.

    The message is one line: what was found, what was expected, what to do. The
    command line prints it alone and exits with code 2; `--debug` adds the traceback.
    """
