"""croissant.json: a dataset's description for catalogues and for `mlcroissant`, made from its facts.

Source: MLCommons Croissant 1.0 with its vocabulary for responsible AI (docs.mlcommons.org/croissant).
"""

import json
from typing import Any

from pipelines.dataset.attribution import licence_names
from pipelines.dataset.facts import Facts

MAX_TARS = 1000  # with more tars than these the card names them by a pattern, and the images' records are left out
_TYPES = {"string": "sc:Text", "fixed_size_binary[32]": "sc:Text", "float": "sc:Float"}
_MIME = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
# The standard's own context: `mlcroissant` warns of any other.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def encode(facts: Facts) -> bytes:
    """The file's content."""
    dated = {"datePublished": facts.attribution.date} if facts.attribution.date else {}
    card = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": facts.title,
        "description": f"{facts.summary} {facts.bytes:,} bytes in {len(facts.shards):,} tars.",
        "license": licence_names(facts.attribution.licence).url,
        "citeAs": facts.citation,
        "version": facts.version,
        **dated,
        **(_synthetic(facts) if facts.synthetic else _real(facts)),
        "distribution": _distribution(facts),
        "recordSet": [_samples(facts), *_images(facts), *_classes(facts)],
    }
    return json.dumps(card, indent=1).encode() + b"\n"


def _distribution(facts: Facts) -> list[dict[str, Any]]:
    manifest = _files("manifest", "manifest/*.parquet", "application/x-parquet")
    if len(facts.shards) > MAX_TARS:
        return [manifest, _files("shards", "shards/*.tar", "application/x-tar")]
    tars = [
        {
            "@type": "cr:FileObject",
            "@id": shard.tar,
            "name": shard.tar,
            "contentUrl": shard.tar,
            "contentSize": f"{shard.bytes} B",
            "sha256": shard.sha256,
            "encodingFormat": "application/x-tar",
        }
        for shard in facts.shards
    ]
    images = _files("image-files", f"*.{facts.extension}", _MIME[facts.extension])
    return [manifest, *tars, {**images, "containedIn": [{"@id": shard.tar} for shard in facts.shards]}]


def _files(name: str, pattern: str, mime: str) -> dict[str, Any]:
    return {"@type": "cr:FileSet", "@id": name, "name": name, "includes": pattern, "encodingFormat": mime}


def _samples(facts: Facts) -> dict[str, Any]:
    """The rows of the manifest."""
    fields = [
        _field(f"samples/{name}", meaning, _TYPES.get(kind, "sc:Integer"), "manifest", {"column": name})
        for name, kind, meaning in facts.columns
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "key": {"@id": "samples/key"},
        "field": fields,
    }


def _images(facts: Facts) -> list[dict[str, Any]]:
    """The images by their keys, out of the tars."""
    if len(facts.shards) > MAX_TARS:
        return []
    key = _field("images/key", "the sample's key", "sc:Text", "image-files", {"fileProperty": "filename"})
    key["source"]["transform"] = {"regex": r"^([0-9]+)\."}
    image = _field("images/image", "the image", "sc:ImageObject", "image-files", {"fileProperty": "content"})
    return [
        {
            "@type": "cr:RecordSet",
            "@id": "images",
            "name": "images",
            "key": {"@id": "images/key"},
            "field": [key, image],
        }
    ]


def _classes(facts: Facts) -> list[dict[str, Any]]:
    """The class of each label."""
    if not facts.identity.classes:
        return []
    fields = [
        {"@type": "cr:Field", "@id": f"classes/{name}", "name": f"classes/{name}", "dataType": kind}
        for name, kind in (("label", "sc:Integer"), ("name", "sc:Text"))
    ]
    return [
        {
            "@type": "cr:RecordSet",
            "@id": "classes",
            "name": "classes",
            "dataType": "sc:Enumeration",
            "key": {"@id": "classes/label"},
            "field": fields,
            "data": [{"classes/label": n, "classes/name": name} for n, name in enumerate(facts.identity.classes)],
        }
    ]


def _field(name: str, meaning: str, kind: str, files: str, extract: dict[str, str]) -> dict[str, Any]:
    source = {"fileSet": {"@id": files}, "extract": extract}
    return {
        "@type": "cr:Field", "@id": name, "name": name, "description": meaning, "dataType": kind, "source": source
    }  # fmt: skip


def _synthetic(facts: Facts) -> dict[str, Any]:
    """What the images were made from, by which model, and what they must not be used for."""
    return {
        "rai:dataCollection": facts.origin,
        "rai:dataCollectionType": ["Others"],
        "rai:dataAnnotationProtocol": (
            ["A label is the class that the generator was asked for. Nobody checked that the image shows it."]
            if facts.identity.classes
            else []
        ),
        "rai:dataUseCases": [
            "Research on generative models, and tests of data pipelines and of training code.",
            *facts.not_for,
        ],
        "rai:dataLimitations": [
            "A generator can repeat itself and leave out what is rare in its training images.",
            "The scores are the outputs of the discriminator. They are no measure of quality.",
        ],
        "rai:dataBiases": ["The images carry over the biases of the training images, and can make them stronger."],
        "rai:personalSensitiveInformation": [
            "A generator can reproduce training images. If those hold personal data, treat these images as if they did."
        ],
        "rai:dataReleaseMaintenancePlan": _PLAN,
    }


_PLAN = "The dataset is sealed: under one root hash it never changes. An extension has another root hash."


def _real(facts: Facts) -> dict[str, Any]:
    image = facts.identity.image
    size = f"{facts.identity.image_size}x{facts.identity.image_size} pixels"
    shape = f" ({image.resize})" if image.resize else ""
    return {
        "rai:dataCollection": facts.origin,
        "rai:dataCollectionType": ["Secondary Data Analysis"],
        "rai:dataCollectionMissingData": "rejects.parquet, if there is one, lists the images that were not taken.",
        "rai:dataPreprocessingProtocol": [f"Decoded, resized to {size}{shape}, stored as {image.format}."],
        "rai:dataLimitations": ["Nobody looked at the images or checked their classes."],
        "rai:personalSensitiveInformation": ["Not examined: ask whoever published the source."],
        "rai:dataReleaseMaintenancePlan": _PLAN,
    }
