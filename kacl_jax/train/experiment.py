"""From a config to the parts of a run: the one place where config keys become plain values."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kacl_jax import config as config_keys
from kacl_jax.config.stored import PIXELS
from kacl_jax.data import splits
from kacl_jax.data.batches import (
    ProcessBatches,
    ShardBatches,
    images_of_shards,
    shards_of_process,
)
from kacl_jax.data.phantom import demo
from kacl_jax.data.records import Records, read_records
from kacl_jax.evaluation import metrics, pixel_probe
from kacl_jax.evaluation.inference import Inference
from kacl_jax.feedback.feature_cache import FeatureCache
from kacl_jax.feedback.feature_table import FeatureTable
from kacl_jax.feedback.pool import RadiomicsPool
from kacl_jax.feedback.visibility import Feedback
from kacl_jax.images.reader import BrokenImage
from kacl_jax.images.resizing import RESIZE_NAME
from kacl_jax.models import pretrained
from kacl_jax.radiomics import host
from kacl_jax.runtime import processes
from kacl_jax.runtime.devices import DataParallel
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.progress import image_progress_bar
from kacl_jax.runtime.workdir import has_checkpoint
from kacl_jax.step.loss_terms import LossSettings
from kacl_jax.step.programs import Programs
from kacl_jax.step.regions import RegionRule
from kacl_jax.step.state import TrainState
from kacl_jax.train import head_start, network

_FOR_EVER_S = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The parts of a run, put together and checked before anything is computed."""

    config: ConfigDict
    workdir: Path
    records: Records
    split: splits.Split
    batches: ProcessBatches
    parallel: DataParallel
    programs: Programs
    inference: Inference
    region_rule: RegionRule

    @property
    def total_steps(self) -> int:
        return self.config.train.epochs * self.batches.steps_per_epoch

    @property
    def lag(self) -> int:
        """Steps until a radiomics result is visible."""
        return _lag(self.config, self.batches.steps_per_epoch)

    @property
    def needs_pool(self) -> bool:
        """Whether pyradiomics runs in worker processes beside the step."""
        return _needs_pool(self.config)

    def initial_state(self) -> tuple[TrainState, pretrained.Origin | None]:
        """See `network.initial_state`. With train.head_start='ridge' the head is a ridge's. All processes call it."""
        state, origin = network.initial_state(self.programs, self.config)
        if self.config.train.head_start == "ridge":
            without_copies = state.replace(opt_state=(), average={})  # of the parameters
            features, images = self.inference.embeddings(
                self.parallel.on_this_process().replicate(without_copies), self.split.train
            )
            loss = self.programs.loss
            head = head_start.fit_head(
                features,
                self.records.labels[images],
                self.records.patients[images],
                alpha=loss.focal_alpha,
                gamma=loss.focal_gamma,
            )
            state = self.programs.with_head(state, head.kernel, head.bias)
        return state, origin

    def state_template(self) -> TrainState:
        """Shapes and dtypes of a state, for reading a checkpoint."""
        size = self.config.data.image_size
        return jax.eval_shape(
            lambda: self.programs.init(network.init_variables(self.programs, self.config), size)
        )

    def open_feedback(self, stack: ExitStack) -> Feedback:
        """Start the radiomics workers and open the workdir's feature cache; both end with the stack.

        Of several processes each has its own, for the images of its shards. All call it.
        """
        machines = [message.meta for message in processes.gather(socket.gethostname())]
        cores = (os.cpu_count() or 2) // machines.count(socket.gethostname())
        pool, cache = self._open_workers(stack, "features", workers=max(1, cores - 1))
        table = FeatureTable(len(self.records.names))
        late = self.config.feedback.late
        return Feedback(pool=pool, table=table, cache=cache, lag=self.lag, late=late)

    def open_grid(self, stack: ExitStack, nice: int) -> tuple[RadiomicsPool, FeatureCache]:
        """Workers that measure the cells of grids, and their memo in the workdir; both end with the stack.

        nice: how far they stand back behind other processes. Those that do have no timeout, because they may have to
          wait for a core for ever so long. The calling thread is the memo's writer.
        """
        return self._open_workers(stack, "grid", workers=os.cpu_count() or 1, nice=nice)

    def _open_workers(
        self, stack: ExitStack, memo: str, *, workers: int, nice: int = 0
    ) -> tuple[RadiomicsPool, FeatureCache]:
        """workers: how many there are if the config does not say it. memo: its name."""
        c = self.config
        name = _cache_name(memo, processes.process_index(), processes.process_count())
        return open_workers(
            stack,
            self.workdir / name,
            workers=c.feedback.workers or workers,
            bin_width=c.radiomics.bin_width,
            timeout_s=_FOR_EVER_S if nice else c.feedback.timeout_s,
            nice=nice,
        )

    @property
    def own_images(self) -> np.ndarray:
        """The training images whose features this process keeps: int [m]."""
        shards = self.config.data.shards
        return images_of_shards(self.split.train, _own_shards(shards), shards)

    def select_own_shards(self, of_shards: list[Any]) -> list[Any]:
        """The entries of this process's shards, of a list with one entry per shard."""
        # Older checkpoints, written before data.shards existed, hold the single entry itself.
        entries = [of_shards] if isinstance(of_shards, dict) else of_shards
        return [entries[shard] for shard in _own_shards(self.config.data.shards)]

    def broken_files(self) -> dict[str, str]:
        """Path → reason of the image files that any process could not read; all call it."""
        messages = processes.gather(self.batches.broken_files())
        return dict(
            sorted((path, why) for message in messages for path, why in message.meta.items())
        )

    def describe(self) -> str:
        """What is about to run, in two lines."""
        missing = self.records.missing
        absent = f" · {len(missing):,} images missing" if missing else ""
        device = self.parallel.devices[0]
        return (
            f"{self.split.describe(self.records)}{absent}\n"
            f"{self.config.model.encoder}, {self.config.data.image_size} px, {self.total_steps:,} steps of "
            f"{self.config.train.batch_size} images on {self.parallel.n_devices} × {device.device_kind}"
            + (
                f" of {processes.process_count()} processes"
                if processes.process_count() > 1
                else ""
            )
        )

    def score_pixel_probe(self) -> metrics.Table | None:
        """The floor for AUROC that needs no network, if the config asks for it."""
        c = self.config
        if not c.eval.pixel_probe:
            return None
        return pixel_probe.score_pixel_probe(
            self.records,
            self.split,
            on_error=c.data.on_error,
            threads=c.data.threads,
            resamples=c.eval.bootstrap,
        )


def open_workers(
    stack: ExitStack,
    memo: Path,
    *,
    workers: int,
    bin_width: float,
    timeout_s: float,
    nice: int = 0,
) -> tuple[RadiomicsPool, FeatureCache]:
    """Radiomics workers and the memo of their features; both end with the stack."""
    pool = stack.enter_context(
        RadiomicsPool(workers, bin_width=bin_width, timeout_s=timeout_s, nice=nice)
    )
    cache = FeatureCache(memo, settings=host.settings_key(bin_width, RESIZE_NAME))
    stack.callback(cache.close)
    return pool, cache


def build_experiment(config: ConfigDict, workdir: Path) -> Experiment:
    """Check the config, read the data's tables, and put the parts together. Nothing is trained or written yet
    but the embedded demo set, if the config asks for it.

    Raises:
      UserError: everything that would stop the run later, as far as it can be known now.
    """
    parallel = DataParallel(config.parallel.mode)
    config_keys.check(config, n_devices=parallel.n_devices, n_processes=processes.process_count())
    _same_number_of_devices(parallel)
    if not has_checkpoint(workdir):
        pretrained.check(
            config.model.pretrained, encoder=config.model.encoder, input_name=config.model.input
        )
    with processes.leader_first():  # process 0 writes the demo set, if it is asked for
        records, split = read_data(config, workdir)
    batches = make_batches(config, records, split)
    check_mean_maps(config, len(records.findings))
    check_that_features_are_seen(config, batches.steps_per_epoch)
    rule = network.region_rule(config)
    programs = network.programs(config, batches.steps_per_epoch, rule, len(records.findings))
    inference = Inference(
        parallel.on_this_process(),
        programs.eval_step,
        records,
        image_size=config.data.image_size,
        batch_size=config.eval.batch_size // processes.process_count(),
        on_error=config.data.on_error,
        threads=config.data.threads,
        broken=batches.broken,
    )
    return Experiment(config, workdir, records, split, batches, parallel, programs, inference, rule)


def check_that_features_are_seen(config: ConfigDict, steps_per_epoch: int) -> None:
    """Raises UserError if no image that is drawn again could find its features."""
    lag, steps = _lag(config, steps_per_epoch), config.train.epochs * steps_per_epoch
    if not _needs_pool(config) or not lag:
        return
    if config.train.epochs == 1:
        raise UserError(
            "config.train.epochs is 1, so every image is used only once and no feature can be used; use more epochs, "
            "or config.feedback.lag=0"
        )
    if lag >= steps:
        raise UserError(
            f"config.feedback.lag is {lag} steps, but the run has {steps}, so no feature can be used; use a shorter "
            "lag or more epochs"
        )


def check_mean_maps(config: ConfigDict, n_findings: int) -> None:
    """Raises UserError if a batch has fewer images than findings where each finding needs one for its mean map."""
    uses_radiomics = LossSettings(**config.loss).uses_radiomics
    if config.cam.stage != 4 and uses_radiomics and config.train.batch_size < n_findings:
        raise UserError(
            f"config.train.batch_size is {config.train.batch_size}; with config.cam.stage=3 it must be at least "
            f"{n_findings}, one image for the mean map of each finding"
        )


def _lag(config: ConfigDict, steps_per_epoch: int) -> int:
    return steps_per_epoch if config.feedback.lag == -1 else config.feedback.lag


def _needs_pool(config: ConfigDict) -> bool:
    uses_radiomics = LossSettings(**config.loss).uses_radiomics
    return uses_radiomics and config.radiomics.backend == "pyradiomics"


def read_data(config: ConfigDict, workdir: Path) -> tuple[Records, splits.Split]:
    """The tables of the data root and the split that the protocol makes of them."""
    data = config.data
    records = read_records(
        data_root(config, workdir),
        findings=data.findings,
        uncertain=data.uncertain,
        allow_missing=data.allow_missing,
        image_size=data.image_size,
        max_megapixels=data.max_megapixels,
    )
    split = splits.make_split(
        records,
        protocol=config.protocol,
        folds=config.folds,
        fold=config.fold,
        val_fraction=data.val_fraction,
        box_share=data.box_share,
        split_seed=data.split_seed,
        version=data.split_version,
    )
    return records, split


def identify_data(records: Records, split: splits.Split, image_size: int) -> dict[str, str]:
    """What must be equal for a run to go on: the tables' checksums, the split's hash, and some pixels."""
    return {
        **records.checksums,
        "split": split.hash,
        PIXELS: _hash_some_pixels(records, image_size),
    }


def _hash_some_pixels(records: Records, image_size: int) -> str:
    """Of 16 images, evenly over the names; one that cannot be read is left out."""
    digest = hashlib.sha256()
    for image in np.unique(np.linspace(0, len(records.names) - 1, 16).astype(int)):
        with contextlib.suppress(BrokenImage):
            pixels = records.images.read(image, image_size)
            digest.update(f"{records.names[image]} {pixels.shape}".encode())
            digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def data_root(config: ConfigDict, workdir: Path) -> Path:
    """The folder the config names; the embedded demo set is drawn beside the workdir first."""
    if "://" in config.data.root:
        raise UserError(
            f"config.data.root is {config.data.root}, but training reads images from a disk; copy the prepared data "
            "set to a disk (gcloud storage cp -r), or mount the bucket"
        )
    if config.data.root != "phantom":
        return Path(config.data.root).expanduser().absolute()
    root = workdir.parent / "phantom"
    try:
        with image_progress_bar(f"Drawing the demo set in {root}") as count:
            demo.write_demo_set(root, count)
    except OSError as error:
        raise UserError(f"The demo set cannot be written to {root} ({error})") from error
    return root


def make_batches(config: ConfigDict, records: Records, split: splits.Split) -> ProcessBatches:
    """The batches of this process. Raises UserError if the training part does not fill one."""
    shards = config.data.shards
    own = _own_shards(shards)
    return ProcessBatches(
        [
            ShardBatches(
                records,
                split,
                image_size=config.data.image_size,
                batch_size=config.train.batch_size // shards,
                seed=config.seed,
                shard=shard,
                shards=shards,
                threads=max(1, config.data.threads // len(own)),
                on_error=config.data.on_error,
            )
            for shard in own
        ]
    )


def _own_shards(shards: int) -> range:
    return shards_of_process(
        shards, index=processes.process_index(), n_processes=processes.process_count()
    )


def _cache_name(memo: str, index: int, n_processes: int) -> str:
    """The file name of a process's memo. Each process has its own, because a file has one writer."""
    return f"{memo}.sqlite" if n_processes == 1 else f"{memo}.{index}of{n_processes}.sqlite"


def _same_number_of_devices(parallel: DataParallel) -> None:
    numbers = [message.meta for message in processes.gather(parallel.on_this_process().n_devices)]
    if len(set(numbers)) > 1:
        raise UserError(
            f"The processes have {', '.join(map(str, numbers))} devices; give all of them the same number"
        )
