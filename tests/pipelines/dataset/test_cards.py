"""A dataset's cards in the tools that read them, and the facts that they state: title, licence, citation, date."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines import images
from pipelines.dataset import attribution, card, claim, croissant, facts, layout, reader, writer
from pipelines.dataset.attribution import NONE, Attribution
from pipelines.dataset.identity import Identity, from_json
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import ShardRecord
from pipelines.dataset.shards import Sample
from pipelines.errors import DatasetError
from pipelines.sources import hugging_face_card
from pipelines.storage.folder import Folder
from tests.croissant import read

DATED = Attribution(date="2026-11-24")
KNOWN = Attribution(title="Pets", licence="CC-BY-4.0", citation="@misc{pets, title={Pets}}", date="2026-11-24")
HOSTILE = '<script>alert(1)</script> "quoted": {yaml} | # `x` ---'


def identity(count: int = 7, **changes: Any) -> Identity:
    fields = {
        "producer": "ingest", "source": "0123abcd", "count": count, "shard_size": 3, "image": {"format": "png"},
        "image_size": 8, "channels": 3, "classes": ["cat", "dog"], "arithmetic": {"numpy": "2.4.6"},
    }  # fmt: skip
    return from_json({**fields, **changes})


def picture(index: int, settled: Identity) -> bytes:
    shape = (settled.image_size, settled.image_size, settled.channels)
    return images.encode(np.random.default_rng(index).integers(0, 256, shape, np.uint8), settled.image.format)


def finish(folder: Folder, settled: Identity) -> Index:
    records: dict[int, ShardRecord] = {}
    for shard in range(layout.num_shards(settled)):
        owned = layout.shard_range(settled, shard)
        label: Callable[[int], int | None] = lambda index: index % 2 if settled.classes else None  # noqa: E731
        samples = [Sample(index, picture(index, settled), label(index)) for index in owned]
        extension = images.EXTENSIONS[settled.image.format]
        extra = {"source": [f"{index}.png" for index in owned]}
        records[shard] = writer.commit(folder, shard, "ingest", samples, extra, extension=extension)
    return writer.seal(folder, settled, records, card.files(folder, settled, records))


def claimed(folder: Folder) -> Attribution | None:
    return reader.read_claim(folder).attribution


class TestCroissant:
    @pytest.mark.parametrize("change", [{}, {"classes": None, "channels": 1}, {"image": {"format": "jpeg"}}])
    def test_mlcroissant_finds_nothing_to_complain_of_and_reads_rows_and_images(
        self, change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder, settled = Folder(str(tmp_path / "d")), identity(**change)
        writer.claim(folder, settled, {}, found=KNOWN)
        index = finish(folder, settled)
        found = read(tmp_path / "d", monkeypatch, caplog)
        assert found.complaints == []
        rows = [row for record in index.shards for row in reader.read_sealed_part(folder, record).table.to_pylist()]
        assert found.rows == rows
        assert [key for key, _ in found.images] == [row["key"] for row in rows]
        for (_, shown), row in zip(found.images, rows, strict=True):
            stored = Image.open(io.BytesIO(reader.read_image(folder, row)))
            assert np.array_equal(np.asarray(shown), np.asarray(stored))
        assert found.classes == ([*enumerate(settled.classes)] if settled.classes else None)
        about = found.metadata
        assert (about.name, about.cite_as) == ("Pets", "@misc{pets, title={Pets}}")
        assert about.license == ["https://spdx.org/licenses/CC-BY-4.0.html"]
        assert about.date_published.strftime("%Y-%m-%d") == "2026-11-24"
        assert about.version == f"1.0.0+{index.root[:12]}"

    @pytest.mark.parametrize("known", [DATED, DATED.model_copy(update={"licence": HOSTILE, "title": HOSTILE})])
    def test_a_dataset_of_unknown_licence_and_hostile_texts_are_described_without_a_warning(
        self, known: Attribution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder, settled = Folder(str(tmp_path / "d")), identity(classes=[HOSTILE, "dog"])
        writer.claim(folder, settled, {}, found=known)
        root = finish(folder, settled).root
        found = read(tmp_path / "d", monkeypatch, caplog)
        assert found.complaints == []
        assert found.metadata.license == [known.licence or "unknown"]
        assert found.metadata.name == (known.title or "7 images")
        assert root in found.metadata.cite_as
        assert found.classes == [(0, HOSTILE), (1, "dog")]

    def test_of_many_tars_the_card_gives_a_pattern_and_not_a_list(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder, settled = Folder(str(tmp_path / "d")), identity(shard_size=1)
        monkeypatch.setattr(croissant, "MAX_TARS", 6)
        writer.claim(folder, settled, {}, found=KNOWN)
        finish(folder, settled)
        found = read(tmp_path / "d", monkeypatch, caplog)
        assert (found.complaints, len(found.rows), found.images) == ([], 7, [])


class TestReadme:
    @given(
        title=st.none() | st.text(min_size=1, max_size=200),
        licence=st.none() | st.sampled_from(["CC-BY-4.0", "odbl", "https://example.org/l"]) | st.text(max_size=200),
    )
    def test_any_text_that_is_taken_comes_out_of_hugging_faces_parser(
        self, title: str | None, licence: str | None, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        try:
            known = Attribution(title=title, licence=licence)
        except ValueError:
            return  # refused: empty, or with control characters
        records = {0: ShardRecord(0, 1, 1024, "0" * 64, 900, "1" * 64)}
        folder = Folder(str(tmp_path_factory.mktemp("d")))
        writer.claim(folder, identity(1), {}, found=known)
        text = card._readme(facts.gather(folder, identity(1), records))
        parsed = DatasetCard(text)
        assert parsed.data.pretty_name == (known.title or "1 images")
        stated = [getattr(parsed.data, name, None) for name in ("license", "license_name", "license_link")]
        assert stated[0] == {"CC-BY-4.0": "cc-by-4.0", "ODbL-1.0": "odbl", None: "unknown"}.get(known.licence, "other")
        if stated[0] == "other":
            assert known.licence in stated[1:]
        assert parsed.data.size_categories == ["n<1K"]
        assert "\n# " in text
        assert "<" not in parsed.text.split("```json")[0].split("\n    @misc")[0]

    @pytest.mark.parametrize(
        ("samples", "category"),
        [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**12, "n>1T"), (10**11, "100B<n<1T")],
    )
    def test_the_class_of_sizes(self, samples: int, category: str) -> None:
        assert card._size_category(samples) == category


class TestClaim:
    def test_a_resume_keeps_the_claims_facts_and_the_same_cards_come_of_it(self, tmp_path: Path) -> None:
        """Also on another day, from a source that says something else by now."""
        made = []
        for name, again in (("a", False), ("b", True)):
            folder = Folder(str(tmp_path / name))
            writer.claim(folder, identity(), {}, found=KNOWN)
            if again:
                writer.claim(folder, identity(), {}, found=Attribution(licence="MIT", date="2030-01-01"))
            finish(folder, identity())
            made.append({file: folder.read(file) for file in folder.tree()})
        assert made[0] == made[1]

    @pytest.mark.parametrize("name", ["title", "licence", "citation"])
    @pytest.mark.parametrize("count", [7, 9])
    def test_other_facts_than_the_claims_are_refused(self, name: str, count: int, tmp_path: Path) -> None:
        """Of a resume and of an extension; and nothing has changed then."""
        folder = Folder(str(tmp_path / "d"))
        writer.claim(folder, identity(), {}, asked=Attribution(licence="MIT"), found=KNOWN)
        finish(folder, identity())
        before = {file: folder.read(file) for file in folder.tree()}
        with pytest.raises(DatasetError) as caught:
            writer.claim(folder, identity(count), {}, asked=Attribution(**{name: "another"}))
        was = json.dumps({**KNOWN.to_json(), "licence": "MIT"}[name])
        assert str(caught.value) == (
            f'{folder}: claimed with {name} = {was}, this run has "another"; '
            f"leave --{name} out to go on, or use another --output"
        )
        assert before == {file: folder.read(file) for file in folder.tree()}

    def test_an_extension_keeps_them(self, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path / "d"))
        writer.claim(folder, identity(), {}, found=KNOWN)
        finish(folder, identity())
        writer.claim(folder, identity(9), {}, asked=Attribution(title="Pets"), found=DATED)
        assert claimed(folder) == KNOWN
        assert reader.read_claim(folder).identity.count == 9

    def test_a_dataset_of_an_earlier_version_gets_them_when_it_is_extended(self, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path / "d"))
        folder.write(layout.CLAIM, claim.encode(identity().to_json(), {}))
        finish(folder, identity())
        assert claimed(folder) is None
        assert json.loads(folder.read("croissant.json"))["license"] == "unknown"
        with pytest.raises(DatasetError, match=r'claimed with licence = nothing, this run has "MIT"; leave --licence'):
            writer.claim(folder, identity(), {}, asked=Attribution(licence="MIT"))
        writer.claim(folder, identity(9), {}, asked=Attribution(licence="MIT"), found=DATED)
        assert claimed(folder) == Attribution(licence="MIT", date="2026-11-24")

    def test_the_root_does_not_depend_on_them(self, tmp_path: Path) -> None:
        roots = set()
        for name, known in (("a", KNOWN), ("b", NONE)):
            writer.claim(Folder(str(tmp_path / name)), identity(), {}, found=known)
            roots.add(finish(Folder(str(tmp_path / name)), identity()).root)
        assert len(roots) == 1

    @pytest.mark.parametrize("entry", [5, {"licence": 5}, {"title": "a\nb"}, {"title": "x" * 201}, {"date": "today"}])
    def test_a_strangers_claim_with_other_facts_is_refused(self, entry: Any, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        folder.write(layout.CLAIM, claim.encode(identity().to_json(), {}, {"attribution": entry}))
        with pytest.raises(DatasetError, match=rf"^{folder}/dataset.json: "):
            reader.read_claim(folder)

    def test_the_date_of_reproducible_builds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
        assert attribution.today() == "1970-01-02"


class TestModel:
    @pytest.mark.parametrize("model", [None, b"", b"[]", b'{"provenance": 5}', b'{"provenance": {"data": 5}}'])
    def test_a_model_that_says_nothing_is_described_without_it(self, model: bytes | None, tmp_path: Path) -> None:
        known = self.about(tmp_path, model)
        assert known.training is not None
        assert (known.training.data, known.training.images, known.training.attribution) == (None, None, NONE)
        assert f"digest {'a' * 64}, trained on a dataset. Seeds: 5 to 11." in known.origin

    def test_what_the_model_was_trained_on_is_named(self, tmp_path: Path) -> None:
        said = {"data": "b" * 64, "images": 2560, "attribution": {"title": "Pets", "licence": "mit"}}
        known = self.about(tmp_path, json.dumps({"provenance": said}).encode())
        assert f'trained for 2,560 images on the dataset "Pets" with root {"b" * 64} (licence: MIT).' in known.origin
        stated = json.loads(croissant.encode(known))
        assert stated["rai:dataCollection"] == known.origin
        assert [*known.not_for] == stated["rai:dataUseCases"][1:]
        assert all(sentence in card._readme(known) for sentence in known.not_for)

    def about(self, tmp_path: Path, model: bytes | None) -> facts.Facts:
        folder = Folder(str(tmp_path))
        settled = identity(producer="generate", model="a" * 64, seed_start=5)
        writer.claim(folder, settled, {}, found=DATED)
        if model is not None:
            folder.write("model/model.json", model)
        return facts.gather(folder, settled, {0: ShardRecord(0, 1, 1024, "0" * 64, 900, "1" * 64)})


BOMB = "a: &a [x]\n" + "\n".join(
    f"{c}: &{c} {{<<: [{', '.join(f'*{p}' for _ in range(9))}]}}" for p, c in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("---\nlicense: mit\npretty_name: Pets\n---\n# Pets\n", Attribution(licence="MIT", title="Pets")),
        ("---\nlicense:\n- cc-by-sa-4.0\n---\n", Attribution(licence="CC-BY-SA-4.0")),
        ("---\nlicense: other\nlicense_link: https://x.org/l\n---\n", Attribution(licence="https://x.org/l")),
        ("---\r\nlicense: other\r\nlicense_name: own\r\n---\r\n", Attribution(licence="own")),
        ("---\nlicense: unknown\n---\n```bibtex\n@misc{a,\n  b={c}}\n```\n", Attribution(citation="@misc{a, b={c}}")),
        ("---\nlicense: [mit, gpl-3.0]\npretty_name: 5\n---\n```\nx\n```\n", Attribution(title="5")),
        ("---\nlicense: !!python/object/apply:os.system ['x']\n---\n", Attribution(licence="x")),
        (f"---\npretty_name: {'x' * 300}\nlicense: mit\n---\n", Attribution(licence="MIT")),
        (f"---\n{BOMB}\nlicense: mit\n---\n", Attribution(licence="MIT")),
        (f"---\na: {'[' * 1_000}\n---\n", NONE),
        ("---\nlicense: mit\n", NONE),
        ("# Pictures\n", NONE),
        ("", NONE),
        ("```" + "\n" * 1_000_000, NONE),
        ("---\n- license\n---\n", NONE),
    ],
)
def test_a_folders_card_is_read(text: str, known: Attribution, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert hugging_face_card.attribution(Folder(str(tmp_path))) == known


def test_a_folder_without_a_card_or_with_another_file_has_nothing(tmp_path: Path) -> None:
    assert hugging_face_card.attribution(Folder(str(tmp_path))) == NONE
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert hugging_face_card.attribution(Folder(str(tmp_path))) == NONE
