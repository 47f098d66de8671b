"""`--mode=ema`."""

from diffjax.checkpoints import ema_snapshots
from diffjax.commands import Request
from diffjax.commands.setup import model_of
from diffjax.experiment.restore import rebuild_average


def run(request: Request) -> int:
    """Rebuilds the average that config.ema asks for from stored ones."""
    rebuilt = rebuild_average(model_of(request.config, request.workdir), request.workdir)
    path = ema_snapshots.save_rebuilt(request.workdir / ema_snapshots.FOLDER, rebuilt)
    print(
        f"wrote {path}: sigma_rel {rebuilt.sigma_rel:g} at step {rebuilt.step} from "
        f"{len(rebuilt.used)} snapshots, residual {rebuilt.residual:.2g}"
    )
    if rebuilt.residual > ema_snapshots.DOUBTFUL:
        print(
            f"warning: residual > {ema_snapshots.DOUBTFUL}: the rebuilt average is a poor fit to "
            "the requested sigma_rel: take a step with a snapshot, or a sigma_rel nearer to those "
            "stored"
        )
    return 0
