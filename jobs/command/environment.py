"""Which GANMILL_ variables of the environment are settings: a misspelt one would be ignored."""

import re
from collections.abc import Collection, Iterable

PREFIX = "GANMILL_"
# Every setting of every command, for the environment: GANMILL_COUNT may be set while train runs, GANMILL_CUONT may not.
# Written out, as importing the other commands takes seconds; a test compares.
NAMES = frozenset(
    """
    against augment background base batch_size beta1 centroids channels classes classifier_images clip compile
    conditional config count data dataset dedupe device discriminator_lr dry_run ema fake features gamma generator_lr
    gpus_per_worker gradient_penalty holdout holdout_output image_column image_format image_size images
    inception_weights keep kind label_column label_smoothing labels limit_shards loss max_failures max_image_bytes
    max_image_pixels max_rejects metric_images min_logit model network output precision quality real recipe
    regenerate relabel repeats resize root rule run seed seed_start selection shard_size share shuffle source split
    sync_batch_norm tick verbose wait_s what width workers z_dim
    """.split()  # noqa: SIM905
)
# What Kubernetes sets in every pod for a Service whose name starts with `ganmill`, as a RayCluster's of that name does.
_SERVICE = re.compile(
    r"GANMILL(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def unknown(variables: Iterable[str], own: Collection[str]) -> str | None:
    """The first variable that is no setting: neither one of the command's `own`, nor another's, nor Kubernetes' own."""
    known = {f"{PREFIX}{name.upper()}" for name in {*NAMES, *own}}
    ours = (variable for variable in sorted(variables) if variable.startswith(PREFIX))
    return next((name for name in ours if name not in known and not _SERVICE.fullmatch(name)), None)
