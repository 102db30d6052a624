"""The GANMILL_ variables of the environment that are settings. A misspelt one is an error, and not ignored."""

import re
from collections.abc import Collection, Iterable

PREFIX = "GANMILL_"
# Every setting of every command: GANMILL_COUNT may be set while train runs, GANMILL_CUONT may not. A literal list,
# because importing the other commands takes seconds; a test compares it with them.
NAMES = frozenset(
    """
    against augment background base batch_size beta1 centroids channels citation classes classifier_images clip
    compile conditional config count data dataset dedupe device discriminator_lr dry_run ema fake features gamma
    generator_lr gpus_per_worker gradient_penalty held_out holdout holdout_output http_port image_column image_format
    image_size images inception_weights keep kind label_column label_smoothing labels licence limit_shards loss
    max_failures max_image_bytes max_image_pixels max_rejects measured metric_images min_logit model network output
    precision quality real recipe regenerate relabel repeats resize root rule run scores seed seed_start selection
    shard_size shards share shuffle source split sync_batch_norm tick title verbose wait_s what width workers z_dim
    """.split()  # noqa: SIM905
)
# Kubernetes sets these in every pod for a Service whose name starts with `ganmill`, as that of a RayCluster does.
_SERVICE = re.compile(
    r"GANMILL(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def unknown(variables: Iterable[str], own: Collection[str]) -> str | None:
    """The first GANMILL_ variable that is neither a setting (of `own` or of another command) nor set by Kubernetes."""
    known = {f"{PREFIX}{name.upper()}" for name in {*NAMES, *own}}
    ours = (variable for variable in sorted(variables) if variable.startswith(PREFIX))
    return next((name for name in ours if name not in known and not _SERVICE.fullmatch(name)), None)
