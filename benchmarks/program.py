"""What a program of this folder ends with."""

import sys
from collections.abc import Callable
from typing import Any

from diffjax.errors import UserError


def exit_code(main: Callable[..., Any], *arguments: Any) -> int:
    """Runs main(*arguments): 0, or 2 for bad input, which is printed in one line."""
    try:
        main(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
