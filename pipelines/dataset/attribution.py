"""A dataset's title, licence, citation and date: facts for its cards, in the claim beside the identity.

They decide no byte of a shard, so they are not in the identity and the root does not cover them. The claim holds them,
so that every start of a job, at any time, writes the same cards.
"""

import os
import time
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]*$"  # cards are text in lines
Line = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_PRINTABLE, strip_whitespace=True)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4000, pattern=_PRINTABLE, strip_whitespace=True)]
_Date = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]

UNKNOWN = "unknown"
_SPDX = (
    "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "CC0-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0",
    "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-3.0",
    "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-2.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0",
)  # fmt: skip
# Hugging Face's identifiers of licences -> SPDX's. Most are SPDX's in lower case.
_KNOWN = {name.lower(): name for name in _SPDX} | {"odbl": "ODbL-1.0", "odc-by": "ODC-By-1.0", "pddl": "PDDL-1.0"}
_IDS = {spdx: hugging_face for hugging_face, spdx in _KNOWN.items()}
_SPELLINGS = _KNOWN | {spdx.lower(): spdx for spdx in _KNOWN.values()}


def spelling(licence: str) -> str:
    """A licence in the spelling of SPDX if it is one of the usual ones for data; any other text as it is."""
    return _SPELLINGS.get(licence.lower(), licence)


Licence = Annotated[Line, AfterValidator(spelling)]


class Attribution(BaseModel):
    """Facts for the cards of a dataset. None: not known."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    title: Line | None = None
    licence: Licence | None = None
    """An SPDX identifier, a URL, or a text."""
    citation: Text | None = None
    """How to cite the dataset, as BibTeX or as text."""
    date: _Date | None = None
    """The day of the claim (UTC)."""

    def over(self, other: "Attribution") -> "Attribution":
        """These facts, and those of another attribution where one is not known here."""
        return Attribution(**{**other.to_json(), **self.to_json()})

    def to_json(self) -> dict[str, Any]:
        """The facts that are known."""
        return self.model_dump(exclude_none=True)


NONE = Attribution()


class LicenceNames(NamedTuple):
    """A licence as the cards name it."""

    hugging_face: dict[str, str]  # entries of a Hugging Face card
    url: str  # or a text, if it has none


def licence_names(licence: str | None) -> LicenceNames:
    """The names of a licence. Source: huggingface.co/docs/hub/repositories-licenses, spdx.org/licenses."""
    if licence is None:
        return LicenceNames({"license": UNKNOWN}, UNKNOWN)
    if licence in _IDS:
        return LicenceNames({"license": _IDS[licence]}, f"https://spdx.org/licenses/{licence}.html")
    if licence.startswith(("https://", "http://")):
        return LicenceNames({"license": "other", "license_name": "other", "license_link": licence}, licence)
    return LicenceNames({"license": "other", "license_name": licence}, licence)


def today() -> str:
    """The date of a claim that is made now; of SOURCE_DATE_EPOCH where that is set (reproducible-builds.org)."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return time.strftime("%Y-%m-%d", time.gmtime(int(epoch) if epoch.isdecimal() else time.time()))
