"""`--mode=plan`."""

from diffjax.commands import Request
from diffjax.experiment import plan


def run(request: Request) -> int:
    """Prints the memory and FLOPs of training; writes nothing."""
    print(plan.as_text(plan.plan(request.config)))
    return 0
