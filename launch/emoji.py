"""Makes a webdataset of emoji and their names from two public packages of Debian and Ubuntu.

    apt-get install fonts-noto-color-emoji unicode-cldr-core
    python -m launch.emoji --out=data/emoji

Images are the glyphs of Noto Color Emoji (SIL Open Font License 1.1), 128x128 on white; captions are the English
short names of the Unicode CLDR (Unicode license), such as "woman judge: light skin tone"; the .json beside them has the
keywords and code points. Of emoji that the font draws alike, the first in CLDR's order is kept. Samples are dealt to
the shards in an order that a hash decides, so that every shard is a fair sample.
"""

import hashlib
import io
import json
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from PIL import Image, ImageDraw, ImageFont, features
from tqdm import tqdm

from dalle_jax.data.readers.webdataset_writer import write_shard
from dalle_jax.errors import UserError
from dalle_jax.storage import local_folder
from launch.cli import start

OUT = flags.DEFINE_string("out", None, "folder to write train-*.tar into", required=True)
NUM_SHARDS = flags.DEFINE_integer("num_shards", 4, "tars to deal the samples to", lower_bound=1)
FONT = flags.DEFINE_string("font", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", "of fonts-noto-color-emoji")
CLDR = flags.DEFINE_string("cldr", "/usr/share/unicode/cldr/common", "of unicode-cldr-core")

IMAGE_SIZE = 128
_STRIKE = 109  # the one size in which the font has its bitmaps
_BITMAP = (136, 128)


def annotations(folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Character sequence, English short name and keywords, in CLDR's order.

    Raises:
      UserError: where the files are not there.
    """
    for part in ("annotations", "annotationsDerived"):
        path = folder / part / "en.xml"
        if not path.is_file():
            raise UserError(f"{path} is missing: apt-get install unicode-cldr-core, or say where it is with --cldr")
        keywords: dict[str, list[str]] = {}
        for entry in xml.etree.ElementTree.parse(path).iter("annotation"):
            characters, text = entry.attrib["cp"], entry.text or ""
            if entry.get("type") == "tts":
                yield characters, text, keywords.get(characters, [])
            else:
                keywords[characters] = [word.strip() for word in text.split("|")]


def load_font(path: str) -> ImageFont.FreeTypeFont:
    """The emoji font.

    Raises:
      UserError: where it is not there, or Pillow cannot join the characters of a sequence into one glyph.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is missing: apt-get install fonts-noto-color-emoji, or say where it is with --font")
    if not features.check("raqm"):
        raise UserError("this build of Pillow has no text shaping (Raqm): install Pillow from its wheel")
    try:
        return ImageFont.truetype(path, _STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise UserError(
            f"{path} is not a color emoji font with bitmaps ({error}): take fonts-noto-color-emoji's"
        ) from error


def draw(characters: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The glyph with its ink in the middle of a white square; None where the font has none or draws nothing."""
    canvas = Image.new("RGBA", _BITMAP, (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((0, 0), characters, font=font, embedded_color=True)
    ink = canvas.getchannel("A").getbbox()
    if ink is None:
        return None
    glyph = canvas.crop(ink)
    side = max(_BITMAP)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)


def samples(folder: Path, font: ImageFont.FreeTypeFont) -> list[dict[str, bytes]]:
    """Files of each sample by extension, their key under "key"; no image twice."""
    drawn: set[bytes] = set()
    found = []
    for characters, name, keywords in tqdm(list(annotations(folder)), unit="emoji", disable=not sys.stderr.isatty()):
        image = draw(characters, font)
        if image is None or image.tobytes() in drawn:
            continue
        drawn.add(image.tobytes())
        encoded = io.BytesIO()
        image.save(encoded, "png")
        key = f"{len(found):09d}"
        codepoints = " ".join(f"U+{ord(character):04X}" for character in characters)
        about = {"key": key, "caption": name, "keywords": keywords, "codepoints": codepoints}
        text = json.dumps(about, ensure_ascii=False)
        found.append({"key": key.encode(), "png": encoded.getvalue(), "txt": name.encode(), "json": text.encode()})
    return found


def main() -> None:
    """Writes the tars."""
    out = Path(local_folder(OUT.value, "--out"))
    found = samples(Path(CLDR.value), load_font(FONT.value))
    if not found:
        raise UserError(f"{FONT.value} draws none of the emoji: take fonts-noto-color-emoji's font")
    found.sort(key=lambda sample: hashlib.sha256(sample["json"]).digest())
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out} ({error.strerror})") from error
    for i in range(NUM_SHARDS.value):
        write_shard(out / f"train-{i:05d}.tar", found[i :: NUM_SHARDS.value])
    print(f"{len(found):,} emoji in {NUM_SHARDS.value} shards: {out}/train-*.tar")


if __name__ == "__main__":
    start(main, alone=True)
