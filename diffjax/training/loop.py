"""The training loop: one pass over config.train.steps, resumable at every checkpoint."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffjax import data
from diffjax.checkpoints import ema_snapshots, workdir
from diffjax.checkpoints.store import Checkpoints
from diffjax.distributed import hosts
from diffjax.distributed.parallel import Strategy
from diffjax.errors import UserError
from diffjax.training import loss_picture
from diffjax.training.collector import without_collector
from diffjax.training.logs import MetricsLog, NoLog, NoProgress, Progress
from diffjax.training.not_finite import FILE, MOST_IN_A_ROW, NotFinite, is_finite, skipping
from diffjax.training.prefetch import Prefetcher
from diffjax.training.signals import StopRequest
from diffjax.training.trainable import Trainable
from diffjax.training.watch import Profile, Watch


class Stopped(Exception):
    """The run was asked to stop by a signal and saved; it can go on."""

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.signal = signal
        self.step = step


def train(
    setup: Trainable, folder: Path, *, profile: bool = False, say: Callable[[str], None] = print
) -> None:
    """Trains from scratch or from the workdir's latest checkpoint, and draws the final pictures.

    Args:
      setup: a resolved config.
      folder: the workdir.
      profile: whether to write a trace of a few steps, to <workdir>/profile.
      say: where lines for the user go.

    Raises:
      UserError: bad input, a disk that stays full, a loss that is not finite, or too many of them
        in a row where config.train.on_not_finite is "skip".
      Stopped: SIGINT or SIGTERM came; the state is saved.
    """
    config = setup.config
    say(setup.kernels.line)
    parallel = setup.strategy()
    parallel.check(setup)
    hosts.check_same("the config", json.dumps(config.to_dict(), sort_keys=True))
    setup.owns(folder)
    held_out = setup.held_out()
    with contextlib.ExitStack() as held:
        opened = []

        def open_alone() -> None:
            held.enter_context(workdir.alone(folder))
            opened.append(Checkpoints(folder))

        hosts.from_first(open_alone)
        checkpoints = opened[0] if opened else Checkpoints(folder, read_only=True)
        try:
            state = _train(setup, folder, parallel, checkpoints, held_out, profile, say)
        except BaseException:
            # What ended the run is what the user should read, not that the disk is still full.
            with contextlib.suppress(UserError):
                checkpoints.close()
            raise
        hosts.from_first(checkpoints.close)  # the others wait for what it writes
        setup.finish(setup.to_compute(setup.frozen(state)), folder, say=say)


def _train(
    setup: Trainable,
    folder: Path,
    parallel: Strategy,
    checkpoints: Checkpoints,
    held_out: list[dict[str, np.ndarray]],
    profile: bool,
    say: Callable[[str], None],
) -> Any:
    config = setup.config
    batches = setup.batches()
    hosts.check_same("the training set", json.dumps(batches.get_state(), sort_keys=True))
    restored = checkpoints.restore(setup.state_shapes())
    if restored is not None:
        state = restored.state
        batches.set_state(restored.data)
        say(f"going on from step {restored.step} of {folder}")
    else:
        state = parallel.init_state(setup)
    start = int(state.step)

    def prepare() -> None:
        workdir.prepare(folder, config, identity=setup.identity)
        ema_snapshots.drop_after(folder / ema_snapshots.FOLDER, start)

    hosts.from_first(prepare)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    say(
        f"{parameters / 1e6:.2f} M parameters, {len(setup.source)} examples "
        f"{setup.source.image_shape}, {len(parallel.devices)} x "
        f"{parallel.devices[0].device_kind} ({config.parallel.strategy}), "
        + (f"{jax.process_count()} processes, " if hosts.several() else "")
        + f"steps {start} to {config.train.steps}"
    )
    if start >= config.train.steps:
        return state
    not_finite = NotFinite(folder, start=start, position=batches.get_state())
    run = _Run(
        setup,
        folder,
        parallel,
        checkpoints,
        held_out,
        start,
        not_finite=not_finite,
        profile=profile,
    )
    try:
        return run.go(parallel.spread(state), batches)
    finally:
        run.close()


class _Run:
    """The loop's own bookkeeping between the first step and the last."""

    def __init__(
        self,
        setup: Trainable,
        folder: Path,
        parallel: Strategy,
        checkpoints: Checkpoints,
        held_out: list[dict[str, np.ndarray]],
        start: int,
        *,
        not_finite: NotFinite,
        profile: bool,
    ) -> None:
        self.setup, self.folder, self.parallel = setup, folder, parallel
        self.checkpoints, self.held_out = checkpoints, held_out
        self.config = setup.config.train
        self.log: MetricsLog | NoLog = NoLog()
        self.progress: Progress | NoProgress = NoProgress()
        if hosts.first():
            self.log = MetricsLog(folder, start=start)
            self.progress = Progress(
                start=start, total=self.config.steps, batch_size=self.config.batch_size
            )
        self.eval_loss = setup.eval_loss()
        # One program, not one for each of a schedule's operations.
        self.learning_rate = jax.jit(setup.learning_rate())
        # Metrics stay on the device until they are logged, so no step waits for the host.
        self.pending: list[tuple[int, dict[str, jax.Array]]] = []
        self.since = time.monotonic()
        self.watch = Watch()
        self.profile = Profile(folder, start=start, on=profile and hosts.first())
        self.loss = math.nan
        self.start = start
        self.evaluated = -1
        self.not_finite = not_finite

    def close(self) -> None:
        self.profile.close()
        self.progress.close()
        self.log.close()

    def go(self, state: Any, batches: data.BatchIterator) -> Any:
        """Steps to the end; returns the state for what follows, one copy of it."""
        config = self.config
        one_step = self.setup.train_step(axis_name=self.parallel.axis_name)
        if config.on_not_finite == "skip":
            one_step = skipping(one_step)
        train_step = self.parallel.compile(one_step)
        first = self.start

        def guard(step: int) -> Any:
            # Tracing makes constants, which are transfers of their own.
            return jax.transfer_guard("allow" if step == first + 1 else "disallow")

        prefetcher = Prefetcher(batches, self.parallel.shard)
        votes = hosts.StopVotes()
        try:
            with StopRequest() as stop:
                for step in range(first + 1, config.steps + 1):
                    with self.watch.waiting():
                        batch = next(prefetcher)
                    self.profile.before(step)
                    # Nothing but the batch, which is there, goes to or from the devices in a step.
                    with without_collector(), guard(step):  # the first call traces
                        state, metrics = train_step(state, batch)
                    self.watch.step(metrics)
                    self.pending.append((step, metrics))
                    if traced := self.profile.after(step, metrics):
                        self.progress.say(f"wrote a trace of steps to {traced}")
                    last = step == config.steps
                    # Read once: a signal may come at any line below.
                    stopped_by = votes.poll(stop.signal, after=metrics)
                    if step % config.log_every == 0 or last or step == first + 1:
                        self.flush()
                    if step % config.eval_every == 0 or last:
                        self.evaluate(step, state)
                    if step % config.checkpoint_every == 0 or last or stopped_by:
                        self.save(step, state, prefetcher.state)
                    if step % config.sample_every == 0 and not last:
                        self.sample(step, state)
                    if stopped_by:
                        self.on_disk()
                        raise Stopped(stopped_by, step)
                self.on_disk()
        finally:
            prefetcher.close()
        return self.setup.at_save(self.parallel.first(state))

    def flush(self) -> None:
        """Fetches the pending metrics, deals with what is not finite, and logs one row."""
        if not self.pending:
            return
        rows = [(step, self.parallel.scalars(metrics)) for step, metrics in self.pending]
        self.pending = []
        skip = self.config.on_not_finite == "skip"
        for step, metrics in rows:
            if is_finite(metrics):
                self.not_finite.in_a_row = 0
                continue
            self.not_finite.add(step, metrics)
            if not skip or self.not_finite.in_a_row >= MOST_IN_A_ROW:
                self._stop_at(step, metrics)
        now = time.monotonic()
        rate = len(rows) * self.config.batch_size / (now - self.since)
        self.since = now
        step = rows[-1][0]
        good = [metrics for _, metrics in rows if is_finite(metrics)]
        names = rows[0][1] if good else ()
        means = {name: float(np.mean([metrics[name] for metrics in good])) for name in names}
        self.loss = means.get("loss", self.loss)
        if skip:
            means["skipped"] = len(rows) - len(good)
        self.progress.update(step, loss=self.loss, images_per_second=rate)
        self.log.write(
            {
                "step": step,
                **means,
                "learning_rate": float(self.learning_rate(step - 1)),
                "images_per_second": rate,
                **self.watch.row(),
            }
        )

    def _stop_at(self, step: int, metrics: dict[str, float]) -> None:
        with contextlib.suppress(UserError):  # that the disk is full, too
            self.checkpoints.wait()
        kept = self.checkpoints.steps()
        good = f"the checkpoint of step {kept[-1]} is kept" if kept else "no checkpoint was written"
        bad = ", ".join(f"{k} = {v}" for k, v in metrics.items() if not math.isfinite(v))
        count = self.not_finite.in_a_row
        if count:
            good += f", and {self.folder / FILE} names the examples"
        if count > 1:
            bad += f", and {count} steps in a row were left out"
        raise UserError(
            f"step {step}: {bad}: expected finite numbers; {good}: lower "
            "config.train.learning_rate or config.train.grad_clip and use a new --workdir"
        )

    def evaluate(self, step: int, state: Any) -> None:
        """The EMA parameters' loss on held-out images, at the same noise every time."""
        if not self.held_out:
            return
        self.flush()
        frozen = self.parallel.first(self.setup.frozen(state))
        batches = map(self.parallel.held_out, self.held_out)
        losses = [self.eval_loss(frozen, batch) for batch in batches]
        self.loss = float(np.mean([float(loss) for loss in losses]))
        self.evaluated = step
        if not math.isfinite(self.loss):
            self._stop_at(step, {"eval_loss": self.loss})
        self.log.write({"step": step, "eval_loss": self.loss})
        self.resume()

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Snapshots and a checkpoint with its held-out loss, and never one that is not finite."""
        self.flush()
        if self.evaluated != step:
            self.evaluate(step, state)
        whole = hosts.gathered(self.setup.at_save(self.parallel.first(state)))
        params = [] if whole is None else jax.tree.leaves(whole.params)
        if hosts.anywhere(not all(np.isfinite(x).all() for x in params)):
            self.not_finite.add(step, {"parameters": math.nan})
            self._stop_at(step, {"parameters": math.nan})

        def snapshots(saved: Any) -> None:
            # Before the checkpoint: a run that goes on from it has all that it won't make again.
            folder = self.folder / ema_snapshots.FOLDER
            ema_snapshots.save(folder, step, self.setup.averages(saved))

        if whole is not None:
            about = self.setup.kept
            self.checkpoints.save(
                step, whole, position, loss=self.loss, about=about, before=snapshots
            )
        hosts.wait()
        self.resume()

    def sample(self, step: int, state: Any) -> None:
        """samples/step_*.png from fixed noise, and loss.png."""
        self.flush()
        frozen = self.parallel.first(self.setup.frozen(state))
        path = self.folder / "samples" / f"step_{step:07}.png"
        with self.dispensable("samples", step):
            self.log.image("samples", self.setup.draw(frozen, path), step=step)
        with self.dispensable("loss.png", step):
            if hosts.first():
                loss_picture.write(self.folder)
        self.resume()

    @contextlib.contextmanager
    def dispensable(self, what: str, step: int) -> Iterator[None]:
        """Around a picture, which is not worth a run: what keeps it from the disk is told."""
        try:
            yield
        except (UserError, OSError) as error:
            self.progress.say(f"warning: no {what} at step {step}: {error}")

    def on_disk(self) -> None:
        """Returns when the last checkpoint and all rows are; the checkpoint has the first chance.

        Raises:
          UserError: either could not be written.
        """
        self.checkpoints.wait()
        self.log.finish()

    def resume(self) -> None:
        """Steps go on: the time since the last one is not theirs."""
        self.since = time.monotonic()
        self.watch.resume()
