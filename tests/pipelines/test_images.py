"""Pixels in and out: what is stored is lossless, and whatever Pillow opens arrives as Pillow shows it."""

import io
import resource
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageCms, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from pipelines import images
from pipelines.images import ImageError, Pixels

WHITE = (255, 255, 255)
TEAL = (16, 128, 144)


def noise(height: int, width: int, channels: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def picture(height: int = 20, width: int = 20) -> Image.Image:
    """A colourful picture that survives palettes and lossy formats recognisably."""
    down, right = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([down * 255 // height, right * 255 // width, 255 - down * 255 // height], 2).astype(np.uint8)
    )


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def normalise(data: bytes, size: int = 20, channels: int = 3, resize: str = "crop", background=WHITE) -> Pixels:
    pixels = images.normalise(data, size, channels, resize, background)
    assert (pixels.shape, pixels.dtype) == ((size, size, channels), np.uint8)
    return pixels


def as_array(image: Image.Image, channels: int) -> Pixels:
    return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(image.height, image.width, channels)


class TestStored:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [1, 2, 7, 28, 64, 129])
    def test_png_is_lossless_for_us_and_for_pillow(self, size: int, channels: int) -> None:
        pixels = noise(size, size, channels, seed=size)
        data = images.encode(pixels)
        assert data.startswith(b"\x89PNG")
        assert np.array_equal(images.decode(data, channels), pixels)
        opened = Image.open(io.BytesIO(data))
        assert opened.mode == ("L" if channels == 1 else "RGB")
        assert np.array_equal(as_array(opened, channels), pixels)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_same_pixels_give_the_same_bytes_however_they_lie_in_memory(self, channels: int) -> None:
        pixels = noise(28, 28, channels)
        turned = np.asfortranarray(pixels)
        assert images.encode(turned) == images.encode(pixels[::-1][::-1]) == images.encode(pixels)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
    def test_what_is_no_image_is_refused(self, data: bytes, channels: int) -> None:
        with pytest.raises(ImageError, match=r"^not an image$"):
            images.decode(data, channels)


class TestPixelsArrive:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
    def test_an_image_of_the_right_size_keeps_its_pixels(self, kind: str) -> None:
        for channels in (1, 3):
            pixels = noise(20, 20, channels)
            data = saved(Image.fromarray(pixels.squeeze()), kind)
            for resize in ("crop", "pad", "stretch"):
                assert np.array_equal(normalise(data, channels=channels, resize=resize), pixels)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        "make",
        [
            lambda: saved(picture().convert("P")),
            lambda: saved(picture().convert("1")),
            lambda: saved(picture(), "JPEG"),
            lambda: saved(picture().convert("CMYK"), "JPEG"),
            lambda: saved(picture().convert("CMYK"), "TIFF"),
            lambda: saved(picture(), "WEBP"),
            lambda: saved(picture(), "GIF"),
            lambda: saved(picture().convert("L")),
        ],
        ids=["palette", "bits", "jpeg", "cmyk jpeg", "cmyk tiff", "webp", "gif", "grey"],
    )
    def test_any_kind_of_image_is_what_pillow_shows(self, make: Callable[[], bytes], channels: int) -> None:
        data = make()
        assert np.array_equal(normalise(data, channels=channels), as_array(Image.open(io.BytesIO(data)), channels))

    def test_grey_to_colour_is_three_equal_channels_and_back_is_the_same_grey(self) -> None:
        grey = noise(20, 20, 1)
        colour = normalise(saved(Image.fromarray(grey[:, :, 0])))
        assert np.array_equal(colour, grey.repeat(3, axis=2))
        assert np.array_equal(normalise(images.encode(colour), channels=1), grey)

    def test_sixteen_bits_become_their_upper_eight(self) -> None:
        deep = np.random.default_rng(0).integers(0, 65536, (20, 20)).astype(np.uint16)
        deep.flat[:4] = (0, 255, 256, 65535)
        for data in (saved(Image.fromarray(deep)), saved(Image.fromarray(deep), "TIFF")):
            assert np.array_equal(normalise(data, channels=1)[:, :, 0], deep >> 8)
            assert np.array_equal(normalise(data), (deep >> 8).astype(np.uint8)[:, :, None].repeat(3, 2))

    @pytest.mark.parametrize("background", [WHITE, TEAL, (0, 0, 0)])
    def test_transparency_is_laid_over_the_background(self, background: tuple[int, int, int]) -> None:
        rgba = noise(20, 20, 4)
        rgba[:5, :, 3], rgba[5:10, :, 3] = 0, 255
        pixels = normalise(saved(Image.fromarray(rgba)), background=background)
        assert (pixels[:5] == background).all()
        assert np.array_equal(pixels[5:10], rgba[5:10, :, :3])
        alpha = rgba[10:, :, 3:] / 255
        blend = rgba[10:, :, :3] * alpha + np.array(background) * (1 - alpha)
        assert np.abs(pixels[10:] - blend).max() <= 1.0

    def test_a_transparent_palette_colour_is_the_background(self) -> None:
        paletted = Image.new("P", (20, 20), 1)
        paletted.putpalette([255, 0, 0, 0, 0, 255])
        paletted.paste(0, (0, 0, 20, 10))
        pixels = normalise(saved(paletted, transparency=0), background=TEAL)
        assert (pixels[:10] == TEAL).all()
        assert (pixels[10:] == (0, 0, 255)).all()

    def test_transparent_grey_is_laid_over_the_backgrounds_grey(self) -> None:
        layer = Image.new("LA", (20, 20), (200, 0))
        grey = Image.new("RGB", (1, 1), TEAL).convert("L").getpixel((0, 0))
        assert (normalise(saved(layer), channels=1, background=TEAL) == grey).all()

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_the_exif_orientation_is_applied(self, kind: str) -> None:
        a = noise(20, 20, 3)
        upright = {
            1: a, 2: a[:, ::-1], 3: a[::-1, ::-1], 4: a[::-1], 5: a.transpose(1, 0, 2),
            6: np.rot90(a, -1), 7: a[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(a),
        }  # fmt: skip
        for orientation, expected in upright.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            assert np.array_equal(normalise(saved(Image.fromarray(a), kind, exif=exif)), expected), orientation

    def test_an_animation_gives_its_first_frame(self) -> None:
        frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
        for kind in ("GIF", "WEBP"):
            data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
            assert (normalise(data) == (255, 0, 0)).all()


class TestShapes:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 20), (20, 30), (10, 10), (7, 33), (70, 13)])
    def test_each_policy_gives_what_pillow_gives(self, height: int, width: int, channels: int) -> None:
        original = Image.fromarray(noise(height, width, 3)).convert("L" if channels == 1 else "RGB")
        lanczos, target = Image.Resampling.LANCZOS, (20, 20)
        fill = Image.new("RGB", (1, 1), TEAL).convert(original.mode).getpixel((0, 0))
        expected = {
            "crop": ImageOps.fit(original, target, lanczos),
            "pad": ImageOps.pad(original, target, lanczos, color=fill),  # type: ignore[arg-type]
            "stretch": original.resize(target, lanczos),
        }
        for resize, image in expected.items():
            pixels = normalise(saved(original), channels=channels, resize=resize, background=TEAL)
            assert np.array_equal(pixels, as_array(image, channels)), resize

    def test_a_photograph_stays_near_lanczos_alone(self) -> None:
        """From 4 times the size on it is averaged down to twice first; Pillow's `reducing_gap`."""
        photograph = picture(600, 800).resize((80, 60)).resize((800, 600), Image.Resampling.BICUBIC)
        alone = as_array(ImageOps.fit(photograph, (20, 20), Image.Resampling.LANCZOS), 3).astype(int)
        assert np.abs(normalise(saved(photograph)).astype(int) - alone).mean() < 1

    def test_crop_keeps_the_middle_pad_keeps_all_and_stretch_fills(self) -> None:
        wide = np.zeros((20, 60, 3), np.uint8)
        wide[:, :20], wide[:, 20:40], wide[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
        data = images.encode(wide)
        crop, pad, stretch = (normalise(data, resize=resize, background=TEAL) for resize in ("crop", "pad", "stretch"))
        assert (crop == (0, 255, 0)).all()
        assert (pad[:6] == TEAL).all()
        assert (pad[14:] == TEAL).all()
        for kept in (pad[10], stretch[0], stretch[10], stretch[19]):
            assert np.array_equal(kept[[1, 10, 18]], [(255, 0, 0), (0, 255, 0), (0, 0, 255)])


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", r"^empty$"),
            (b"a note to self\n", r"^not an image$"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"^not an image$"),
            (saved(picture())[:8], r"^not an image$"),
            (saved(picture(), "BMP")[:-100], r"^damaged: image file is truncated"),
            (saved(Image.fromarray(noise(90, 90, 3)))[:10_000], r"^damaged: "),
            (saved(Image.fromarray(noise(90, 90, 3)), "JPEG")[:4_000], r"^damaged: image file is truncated"),
            (png(10_000, 9_500), r"^too large: 10000x9500 pixels, of 89,478,485 that are allowed$"),
            (png(50_000, 50_000), r"^too large: 50000x50000 pixels, of 89,478,485 that are allowed$"),
        ],
        ids=["empty", "text", "svg", "signature", "cut bmp", "cut png", "cut jpeg", "large", "bomb"],
    )
    def test_each_kind_of_bad_file_has_its_reason(self, data: bytes, reason: str) -> None:
        with pytest.raises(ImageError, match=reason):
            images.normalise(data, 20, 3, "crop", WHITE)

    def test_an_image_just_below_the_limit_is_read_for_what_it_holds(self) -> None:
        with pytest.raises(ImageError, match=r"^damaged: "):
            images.normalise(png(8_000, 8_000), 20, 3, "crop", WHITE)

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
    def test_a_damaged_exif_block_is_a_reason_like_any_other(self, kind: str) -> None:
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "a description"
        block, rng, refused = exif.tobytes(), np.random.default_rng(0), []
        for _ in range(300):
            damaged = bytearray(block)
            for position in rng.integers(0, len(block), 4).tolist():
                damaged[position] ^= int(rng.integers(1, 256))
            data = saved(Image.fromarray(noise(20, 20, 3)), kind, exif=bytes(damaged))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    normalise(data)
                except ImageError as error:
                    refused.append(str(error).split(":")[0])
        assert {*refused} == {"damaged"}

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
    def test_damage_anywhere_is_an_image_error_or_other_pixels_and_nothing_else(self, kind: str) -> None:
        data, rng, refused = saved(picture(), kind), np.random.default_rng(1), set()
        for _ in range(200):
            damaged = bytearray(data)
            for position in rng.integers(0, min(len(data), 300), 3).tolist():
                damaged[position] ^= int(rng.integers(1, 256))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    normalise(bytes(damaged[: int(rng.integers(1, 2 * len(data)))]))
                except ImageError as error:
                    refused.add(str(error).split(":")[0])
        assert refused <= {"damaged", "not an image", "too large"}
        assert len(refused) > 1


def swapped_profile() -> bytes:
    """sRGB with red and blue changed over: what says (r, g, b) means sRGB's (b, g, r)."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for first, second in ((b"rXYZ", b"bXYZ"), (b"rTRC", b"bTRC")):
        data = data.replace(first, b"????").replace(second, first).replace(b"????", second)
    return data.replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))


class TestColourManagement:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
    @pytest.mark.parametrize("alpha", [False, True])
    def test_a_profile_is_converted_to_srgb(self, kind: str, alpha: bool) -> None:
        pixels = np.asarray(picture())
        image = Image.fromarray(pixels)
        if alpha:
            image.putalpha(255)
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(image, kind, icc_profile=swapped_profile(), **options)
        difference = normalise(data).astype(int) - pixels[:, :, ::-1]
        assert np.abs(difference).max() <= 2

    def test_srgbs_own_and_a_damaged_profile_leave_the_pixels(self) -> None:
        pixels = np.asarray(picture())
        own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        for profile in (own, b"no profile", swapped_profile()[:200]):
            assert np.array_equal(normalise(saved(picture(), icc_profile=profile)), pixels)

    def test_a_profile_of_another_kind_of_pixels_is_left_aside(self) -> None:
        grey = noise(20, 20, 1)
        data = saved(Image.fromarray(grey[:, :, 0]), icc_profile=swapped_profile())
        assert np.array_equal(normalise(data, channels=1), grey)


class TestOthersAgree:
    """torchvision, on the same bytes."""

    @pytest.mark.parametrize(
        ("make", "most"),
        [
            (lambda: saved(picture()), 0),
            (lambda: saved(picture(), "JPEG", quality=95), 1),
            (lambda: saved(picture(), "JPEG", quality=80, progressive=True), 1),
            (lambda: saved(picture(), "WEBP", quality=90), 1),
            (lambda: saved(picture().convert("P"), "GIF"), 0),
        ],
        ids=["png", "jpeg", "progressive", "webp", "gif"],
    )
    def test_decoding(self, make: Callable[[], bytes], most: int) -> None:
        data = make()
        decode = torchvision.io.decode_gif if data.startswith(b"GIF") else torchvision.io.decode_image
        theirs = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        theirs = theirs.expand(3, -1, -1) if len(theirs) == 1 else theirs
        assert np.abs(normalise(data).astype(int) - theirs.permute(1, 2, 0).numpy()).max() <= most

    @pytest.mark.parametrize(("height", "width"), [(50, 70), (77, 40), (64, 64), (10, 12)])
    def test_resizing_and_cropping(self, height: int, width: int) -> None:
        image = picture(height, width)
        scaled = functional.resize(image, [20], InterpolationMode.LANCZOS)
        theirs = np.asarray(functional.center_crop(scaled, [20])).astype(int)
        assert (
            np.abs(normalise(saved(image)).astype(int) - theirs).mean() < 4
        )  # they round the other side and crop by it
        squeezed = functional.resize(image, [20, 20], InterpolationMode.LANCZOS)
        assert np.array_equal(normalise(saved(image), resize="stretch"), np.asarray(squeezed))

    def test_it_is_antialiased(self) -> None:
        stripes = np.tile(np.uint8([0, 255]), (200, 100))[:, :, None]  # finer than the result can show
        grey = normalise(images.encode(stripes), channels=1, resize="stretch")
        assert np.abs(grey.astype(int) - 127).max() < 6


class TestWhatIsNotOpened:
    def test_a_program_in_an_image_is_not_run(self, tmp_path: Path) -> None:
        """Pillow gives EPS to Ghostscript, whatever the file is called."""
        program = (
            f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n({tmp_path}/owned) (w) file closefile\nshowpage\n"
        )
        with pytest.raises(ImageError, match=r"^not an image$"):
            normalise(program.encode())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("mode", ["LAB", "F"])
    def test_pixels_that_are_no_colours(self, mode: str) -> None:
        image = Image.new("F", (20, 20), 0.5) if mode == "F" else ImageCms.applyTransform(
            picture(), ImageCms.buildTransform(
                ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"))  # fmt: skip
        assert image is not None
        with pytest.raises(ImageError, match=f"^a kind of pixels that is not taken: {mode}$"):
            normalise(saved(image, "TIFF"))

    def test_a_bomb_is_not_decoded(self) -> None:
        """Gigabytes of pixels in a kilobyte: refused by what its header says, in no memory."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ImageError, match=r"^too large: 30000x30000 pixels"):
            normalise(png(30_000, 30_000))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10
        with pytest.raises(ImageError, match=r"^too large: 21x20 pixels, of 400 that are allowed$"):
            images.normalise(saved(picture(20, 21)), 20, 3, "crop", WHITE, 400)


class TestColours:
    @pytest.mark.parametrize(
        ("name", "rgb"), [("white", WHITE), ("#108090", TEAL), ("black", (0, 0, 0)), ("#11223344", (17, 34, 51))]
    )
    def test_css_names_and_hex_are_known(self, name: str, rgb: tuple[int, int, int]) -> None:
        assert images.colour(name) == rgb

    @pytest.mark.parametrize("name", ["", "whiteish", "#12", "255,255,255"])
    def test_any_other_colour_is_refused(self, name: str) -> None:
        with pytest.raises(ImageError) as caught:
            images.colour(name)
        assert str(caught.value) == f"no colour {name!r}; write a CSS name or #rrggbb"


class TestGrid:
    @pytest.mark.parametrize("scale", [1, 3])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_image_lies_in_its_row_and_column_and_the_rest_is_white(self, channels: int, scale: int) -> None:
        rows = [[noise(5, 7, channels, 10 * r + c) for c in range(3 - r)] for r in range(2)]
        sheet = images.grid(rows, scale)
        assert sheet.shape == ((2 * 7 + 2) * scale, (3 * 9 + 2) * scale, channels)
        small = sheet[::scale, ::scale]
        assert np.array_equal(small.repeat(scale, 0).repeat(scale, 1), sheet)
        rest = np.ones(small.shape, bool)
        for r, row in enumerate(rows):
            for c, image in enumerate(row):
                place = (slice(2 + 7 * r, 7 + 7 * r), slice(2 + 9 * c, 9 + 9 * c))
                assert np.array_equal(small[place], image)
                rest[place] = False
        assert (small[rest] == 255).all()
