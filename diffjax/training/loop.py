"""The training loop, resumable at every checkpoint."""

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
from diffjax.checkpoints.lock import lock
from diffjax.checkpoints.store import Checkpoints
from diffjax.distributed import processes
from diffjax.distributed.strategy import Strategy
from diffjax.errors import UserError
from diffjax.progress import note_if_long
from diffjax.training import loss_picture, starts
from diffjax.training.gc_pause import gc_disabled
from diffjax.training.logs import (
    MetricsLog,
    NoLog,
    NoProgress,
    Progress,
    first_step_seconds,
    read_rows,
)
from diffjax.training.not_finite import FILE, MOST_IN_A_ROW, NotFinite, is_finite, skipping
from diffjax.training.prefetch import Prefetcher
from diffjax.training.stop_request import StopRequest
from diffjax.training.telemetry import StepTimer, TraceProfiler
from diffjax.training.training_task import TrainingTask


class Stopped(Exception):
    """A signal stopped the run; a checkpoint was saved, from which it can resume."""

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.signal = signal
        self.step = step


def train(
    task: TrainingTask, folder: Path, *, profile: bool = False, log: Callable[[str], None] = print
) -> None:
    """Trains from scratch or from the workdir's latest checkpoint, and draws the final pictures.

    Args:
      task: the model, its data and its settings.
      folder: the workdir.
      profile: whether to write a trace of a few steps, to <workdir>/profile.
      log: prints a line for the user.

    Raises:
      UserError: invalid input, a full disk, or a loss that is not finite; with
        config.train.on_not_finite "skip", MOST_IN_A_ROW of them in a row.
      Stopped: on SIGINT or SIGTERM; a checkpoint is saved.
    """
    log(task.kernels.line)
    strategy = task.strategy()
    strategy.check(task)
    processes.check_same("the config", json.dumps(task.config_dict, sort_keys=True))
    begin = None if task.owns(folder) else task.read_start()
    held_out = task.held_out()
    if not held_out:
        log("no loss is measured on held-out images: 'best' is by the training loss")
    with contextlib.ExitStack() as held:
        opened = []

        def open_alone() -> None:
            held.enter_context(lock(folder))
            opened.append(Checkpoints(folder, keep_every=task.settings.keep_every))

        processes.run_on_primary(open_alone)
        checkpoints = opened[0] if opened else Checkpoints(folder, read_only=True)
        try:
            state = _train(task, folder, strategy, checkpoints, held_out, begin, profile, log)
        except BaseException:
            # Report what ended the run, rather than that the disk is still full.
            with contextlib.suppress(UserError):
                checkpoints.close()
            raise
        processes.run_on_primary(checkpoints.close)  # the others wait for the last save
        task.write_final_pictures(task.to_compute(task.averaged(state)), folder, log=log)


def _train(
    task: TrainingTask,
    folder: Path,
    strategy: Strategy,
    checkpoints: Checkpoints,
    held_out: list[dict[str, np.ndarray]],
    begin: Any,
    profile: bool,
    log: Callable[[str], None],
) -> Any:
    batches = task.batches()
    processes.check_same("the training set", json.dumps(batches.get_state(), sort_keys=True))
    with note_if_long(f"reading the checkpoint of {folder}", log=log):
        restored = checkpoints.restore(task.to_stored(task.state_shapes()))
    if restored is not None:
        state = task.from_stored(restored.state)
        batches.set_state(restored.data)
        log(f"resuming from step {restored.step} of {folder}")
    else:
        with note_if_long("compiling and drawing the initial parameters", log=log):
            state = strategy.init_state(task)
        if begin is not None:
            state = task.started(state, begin, log=log)
    start = int(state.step)

    def prepare() -> None:
        workdir.prepare(folder, task.config_dict, identity=task.identity)
        ema_snapshots.drop_after(folder / ema_snapshots.FOLDER, start)

    processes.run_on_primary(prepare)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    log(
        f"{parameters / 1e6:.2f} M parameters, {task.description}, {len(strategy.devices)} x "
        f"{strategy.devices[0].device_kind} ({strategy.name}), "
        + (f"{jax.process_count()} processes, " if processes.is_multiprocess() else "")
        + f"steps {start} to {task.settings.steps}"
    )
    if start >= task.settings.steps:
        return state

    def record_start() -> None:
        try:
            starts.record(folder, step=start, devices=strategy.devices, parameters=parameters)
        except OSError as error:
            log(f"warning: this start is not recorded in {starts.STARTS}: {error}")

    processes.run_on_primary(record_start)
    not_finite = NotFinite(folder, start=start, position=batches.get_state())
    run = _Run(
        task,
        folder,
        strategy,
        checkpoints,
        held_out,
        start,
        not_finite=not_finite,
        profile=profile,
    )
    try:
        return run.go(strategy.shard_state(state), batches)
    finally:
        run.close()


class _Run:
    """The state of the loop between the first step and the last."""

    def __init__(
        self,
        task: TrainingTask,
        folder: Path,
        strategy: Strategy,
        checkpoints: Checkpoints,
        held_out: list[dict[str, np.ndarray]],
        start: int,
        *,
        not_finite: NotFinite,
        profile: bool,
    ) -> None:
        self.task, self.folder, self.strategy = task, folder, strategy
        self.checkpoints, self.held_out = checkpoints, held_out
        self.settings = task.settings
        self.log: MetricsLog | NoLog = NoLog()
        self.progress: Progress | NoProgress = NoProgress()
        if processes.is_primary():
            self.log = MetricsLog(folder, start=start)
            self.progress = Progress(
                start=start, total=self.settings.steps, batch_size=self.settings.batch_size
            )
        self.eval_loss = task.eval_loss()
        # Jitted: one program instead of one per operation of a schedule.
        self.learning_rate = jax.jit(task.learning_rate())
        # Metrics stay on the device until they are logged, so that no step waits for the host.
        self.pending: list[tuple[int, dict[str, jax.Array]]] = []
        self.since = time.monotonic()
        self.timer = StepTimer()
        self.profiler = TraceProfiler(folder, start=start, on=profile and processes.is_primary())
        self.loss = math.nan
        self.start = start
        self.evaluated = -1
        self.not_finite = not_finite

    def close(self) -> None:
        self.profiler.close()
        self.progress.close()
        self.log.close()

    def go(self, state: Any, batches: data.BatchIterator) -> Any:
        """Runs all steps; returns the final state, as `before_save` makes it."""
        settings = self.settings
        one_step = self.task.train_step()
        if settings.skip_not_finite:
            one_step = skipping(one_step)
        train_step = self.strategy.compile(one_step)
        first = self.start

        def guard(step: int) -> Any:
            # Tracing transfers constants.
            return jax.transfer_guard("allow" if step == first + 1 else "disallow")

        prefetcher = Prefetcher(batches, self.strategy.shard_batch)
        votes = processes.StopVotes()
        try:
            with StopRequest() as stop:
                for step in range(first + 1, settings.steps + 1):
                    with self.timer.waiting():
                        batch = next(prefetcher)
                    self.profiler.before(step)
                    # The batch is already on the devices; a step makes no other transfers.
                    with gc_disabled(), guard(step), self.compiling(step):
                        state, metrics = train_step(state, batch)
                    self.timer.step(metrics)
                    self.pending.append((step, metrics))
                    if traced := self.profiler.after(step, metrics):
                        self.progress.log(f"wrote a trace of steps to {traced}")
                    last = step == settings.steps
                    # Polled once: a signal may arrive at any line below.
                    stopped_by = votes.poll(stop.signal, after=metrics)
                    if step % settings.log_every == 0 or last or step == first + 1:
                        self.flush()
                    if step % settings.eval_every == 0 or last:
                        self.evaluate(step, state)
                    if step % settings.checkpoint_every == 0 or last or stopped_by:
                        self.save(step, state, prefetcher.state)
                    if step % settings.sample_every == 0 and not last:
                        self.sample(step, state)
                    if stopped_by:
                        self.on_disk()
                        raise Stopped(stopped_by, step)
                self.on_disk()
        finally:
            prefetcher.close()
        return self.task.before_save(state)

    def compiling(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Logs that the step is compiled, within the first call, which traces and compiles it."""
        if step != self.start + 1:
            return contextlib.nullcontext()
        seconds = first_step_seconds(
            read_rows(self.folder / "metrics.jsonl"), batch_size=self.settings.batch_size
        )
        before = "this may take a minute" if seconds is None else f"{seconds:.0f} s the last time"
        return note_if_long(f"compiling the train step: {before}", log=self.progress.log)

    def flush(self) -> None:
        """Fetches the pending metrics, handles those that are not finite, and logs one row."""
        if not self.pending:
            return
        rows = [(step, self.strategy.scalars(metrics)) for step, metrics in self.pending]
        self.pending = []
        skip = self.settings.skip_not_finite
        for step, metrics in rows:
            if is_finite(metrics):
                self.not_finite.in_a_row = 0
                continue
            self.not_finite.add(step, metrics)
            if not skip or self.not_finite.in_a_row >= MOST_IN_A_ROW:
                self._stop_at(step, metrics)
        now = time.monotonic()
        rate = len(rows) * self.settings.batch_size / (now - self.since)
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
                **self.timer.row(),
            }
        )

    def _stop_at(self, step: int, metrics: dict[str, float]) -> None:
        with contextlib.suppress(UserError):  # the disk may be full, too
            self.checkpoints.wait()
        kept = self.checkpoints.steps()
        good = f"the checkpoint of step {kept[-1]} is kept" if kept else "no checkpoint was written"
        bad = ", ".join(f"{k} = {v}" for k, v in metrics.items() if not math.isfinite(v))
        count = self.not_finite.in_a_row
        if count:
            good += f", and {self.folder / FILE} lists the examples"
        if count > 1:
            bad += f", and {count} updates in a row were skipped"
        raise UserError(
            f"step {step}: {bad}: expected finite numbers; {good}: {self._advice(kept)}"
        )

    def _advice(self, kept: list[int]) -> str:
        """How to go on from the last checkpoint with a lower learning rate, as flags."""
        rate = self.task.config_dict["train"]["learning_rate"]
        lower = f"--config.train.learning_rate={rate / 3:.2g}"
        if not kept:
            return f"run the same command with another --workdir and {lower}"
        return (
            f"to go on from there, run the same command with --workdir={self.folder}-lower "
            f"--config.train.init_from={self.folder}@{kept[-1]} {lower}"
        )

    def evaluate(self, step: int, state: Any) -> None:
        """Logs the EMA parameters' loss on held-out images, at fixed noise."""
        if not self.held_out:
            return
        self.flush()
        averaged = self.task.averaged(state)
        with note_if_long("measuring the loss on held-out images", log=self.progress.log):
            losses = [
                self.eval_loss(averaged, self.strategy.shard_held_out(batch))
                for batch in self.held_out
            ]
            self.loss = float(np.mean([float(loss) for loss in losses]))
        self.evaluated = step
        if not math.isfinite(self.loss):
            self._stop_at(step, {"eval_loss": self.loss})
        self.log.write({"step": step, "eval_loss": self.loss})
        self.resume()

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Saves EMA snapshots and a checkpoint with its held-out loss; all must be finite."""
        self.flush()
        if self.evaluated != step:
            self.evaluate(step, state)
        whole = processes.gather_to_host(self.task.to_stored(self.task.before_save(state)))
        params = [] if whole is None else jax.tree.leaves(whole.params)
        if processes.any_process(not all(np.isfinite(x).all() for x in params)):
            self.not_finite.add(step, {"parameters": math.nan})
            self._stop_at(step, {"parameters": math.nan})

        def snapshots(saved: Any) -> None:
            # Before the checkpoint: a run resumed from it does not write these snapshots again.
            folder = self.folder / ema_snapshots.FOLDER
            ema_snapshots.save(folder, step, self.task.power_emas(saved))

        if whole is not None:
            about = self.task.about_data
            self.checkpoints.save(
                step, whole, position, loss=self.loss, about=about, before=snapshots
            )
        processes.barrier()
        self.resume()

    def sample(self, step: int, state: Any) -> None:
        """Writes samples/step_*.png from fixed noise, and loss.png."""
        self.flush()
        averaged = self.task.averaged(state)
        path = self.folder / "samples" / f"step_{step:07}.png"
        drawing = note_if_long(f"drawing samples of step {step}", log=self.progress.log)
        with self.dispensable("samples", step), drawing:
            self.log.image("samples", self.task.write_samples(averaged, path), step=step)
        with self.dispensable("loss.png", step):
            if processes.is_primary():
                loss_picture.write(self.folder)
        self.resume()

    @contextlib.contextmanager
    def dispensable(self, what: str, step: int) -> Iterator[None]:
        """Turns a failure to write a picture into a warning."""
        try:
            yield
        except (UserError, OSError) as error:
            self.progress.log(f"warning: no {what} at step {step}: {error}")

    def on_disk(self) -> None:
        """Waits until the last checkpoint and then all rows of metrics are written.

        Raises:
          UserError: either could not be written.
        """
        self.checkpoints.wait()
        self.log.finish()

    def resume(self) -> None:
        """Restarts the timers, to exclude the time since the last step."""
        self.since = time.monotonic()
        self.timer.resume()
