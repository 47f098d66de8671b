"""`--mode=ema`."""

from diffjax.checkpoints import ema_snapshots
from diffjax.commands import Request
from diffjax.commands.setup import model_of
from diffjax.experiment.restore import rebuild_average


def run(request: Request) -> int:
    """Rebuilds the average of config.ema from stored snapshots."""
    rebuilt = rebuild_average(model_of(request.config, request.workdir), request.workdir)
    path = ema_snapshots.save_rebuilt(request.workdir / ema_snapshots.FOLDER, rebuilt)
    print(
        f"wrote {path}: sigma_rel {rebuilt.sigma_rel:g} at step {rebuilt.step} from "
        f"{len(rebuilt.used)} snapshots, residual {rebuilt.residual:.2g}"
    )
    if rebuilt.residual > ema_snapshots.DOUBTFUL:
        print(
            f"warning: residual > {ema_snapshots.DOUBTFUL}: the rebuilt average is a poor fit to "
            "the requested sigma_rel: use the step of a snapshot, or a sigma_rel closer to the "
            "stored ones"
        )
    return 0
