"""What the train step minimises: the weighted terms of the loss and the sizes of their gradients.

Axes: b batch on this device · u v map cells · k channels · c findings.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from kacl_jax.models.kacl import KACL
from kacl_jax.runtime.devices import AXIS
from kacl_jax.step import gradcam
from kacl_jax.step.forward import Forward
from kacl_jax.step.loss_terms import LossSettings, TermInputs, terms_in_use
from kacl_jax.step.state import Metrics


class Heads(NamedTuple):
    """What the heads made of a forward pass: no gradient flows through it.

    logits, maps: of the first views; the class maps are raw.
    batch_stats: the running statistics, moved by the encoders of both networks.
    """

    logits: Float32[Array, "b c"]
    maps: Float32[Array, "b c u v"]
    batch_stats: Any


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of one run as a function of the parameters and one forward pass.

    feature_columns: the radiomic features that the radiomics encoder sees. warmup_steps: steps without NT-Xent.
    """

    model: KACL
    settings: LossSettings
    feature_columns: tuple[bool, ...]
    warmup_steps: int

    def total(
        self, step: Int32[Array, ""], params: Any, forward: Forward
    ) -> tuple[Float32[Array, ""], Metrics, Heads]:
        """(the loss over the global batch, its unweighted terms, the heads' outputs).

        If no row of the batch has a term, the term is reported as NaN and adds 0 to the loss. Pass the gradients of the
        loss through `global_gradients`: they are then right under shard_map and under pmap.
        """
        sums, counts, heads = self.terms(params, forward)
        counts = jax.lax.psum(counts, AXIS)
        terms = {k: jax.lax.psum(sums[k], AXIS) / jnp.maximum(counts[k], 1) for k in sums}
        weights = self.weights(step, counts)
        loss = sum((weights[k] * terms[k] for k in terms), jnp.zeros(()))
        return loss, {k: jnp.where(counts[k] > 0, terms[k], jnp.nan) for k in terms}, heads

    def terms(self, params: Any, forward: Forward) -> tuple[Metrics, Metrics, Heads]:
        """(each term's sum on this device, its count there, the heads' outputs)."""
        first_views = forward.feature_map[: len(forward.batch["labels"])]
        logits, maps = self.logits_and_maps(params, first_views)
        sums, counts, batch_stats = {}, {}, forward.batch_stats
        inputs = TermInputs(
            self.model, params, self.settings, self.feature_columns, forward, logits, maps
        )
        for name, term in terms_in_use(self.settings).items():
            measured = term.measure(inputs)
            sums[name], counts[name] = measured.sum, measured.count
            batch_stats = batch_stats if measured.batch_stats is None else measured.batch_stats
        return sums, counts, Heads(logits, jax.lax.stop_gradient(maps), batch_stats)

    def weights(self, step: Int32[Array, ""], counts: Metrics) -> Metrics:
        """What each term is multiplied by; counts: over all devices."""
        weights = {}
        for name, term in terms_in_use(self.settings).items():
            weight: Any = term.weight(self.settings)
            if term.after_warmup:
                begun = (step >= self.warmup_steps) & (counts[name] >= term.min_count)
                weight = jnp.where(begun, weight, 0.0)
            weights[name] = jnp.asarray(weight)
        return weights

    def gradient_norms(self, params: Any, forward: Forward) -> Metrics:
        """Norm of each unweighted term's gradient at the feature map: through the heads only, hence cheap.

        NaN for a term that no row of the batch has.
        """

        def local_terms(a: Float32[Array, "n u v k"]) -> tuple[Metrics, Metrics]:
            sums, counts, _ = self.terms(params, forward._replace(feature_map=a))
            counts = jax.lax.psum(counts, AXIS)
            return {k: sums[k] / jnp.maximum(counts[k], 1) for k in sums}, counts

        terms, pull_back, counts = jax.vjp(local_terms, forward.feature_map, has_aux=True)
        norms = {}
        for name in terms:
            one = {
                k: jnp.ones_like(v) if k == name else jnp.zeros_like(v) for k, v in terms.items()
            }
            (gradient,) = pull_back(one)
            norm = jnp.sqrt(jax.lax.psum((gradient**2).sum(), AXIS))
            norms[f"grad_norm_{name}"] = jnp.where(counts[name] > 0, norm, jnp.nan)
        return norms

    def logits_and_maps(
        self, params: Any, feature_map: Float32[Array, "b u v k"]
    ) -> tuple[Float32[Array, "b c"], Float32[Array, "b c u v"]]:
        """(the logits, the raw class maps of that feature map)."""

        def classify(a: Float32[Array, "b u v k"]) -> Float32[Array, "b c"]:
            logits: Any = self.model.apply({"params": params}, a, method="classify")
            return logits

        return classify(feature_map), gradcam.class_maps(
            classify, feature_map, self.model.n_findings
        )
