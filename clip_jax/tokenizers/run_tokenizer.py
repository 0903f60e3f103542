"""The tokenizer of a run: one that was trained here, or a published one, kept in the work directory."""

from etils import epath

from clip_jax.tokenizers.published import CaptionTokenizer, load_tokenizer
from dalle_jax.data.tokenizer import END, PAD, START, Tokenizer

TRAINED = "tokenizer.model"
"""The file of a tokenizer trained here, in a run and beside weights that were saved from one."""

PUBLISHED = "tokenizer"
"""The folder of a published tokenizer's files in a run."""


class TrainedTokenizer(CaptionTokenizer):
    """A tokenizer of `dalle_jax.data` as CLIP's captions are read by it."""

    _start, end_id, _pad_id = (START,), END, PAD

    def __init__(self, tokenizer: Tokenizer, *, context_length: int, truncate: bool = False):
        super().__init__(context_length, truncate)
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size

    def pieces(self, text: str) -> list[int]:
        return self.tokenizer.pieces(text)

    def files(self) -> dict[str, bytes]:
        return {TRAINED: self.tokenizer.model}


def has_tokenizer(folder: epath.PathLike) -> bool:
    """Whether a folder holds what `read_tokenizer` reads."""
    return (epath.Path(folder) / TRAINED).exists() or (epath.Path(folder) / PUBLISHED).is_dir()


def read_tokenizer(folder: epath.PathLike, *, context_length: int, truncate: bool = False) -> CaptionTokenizer:
    """The tokenizer in a work directory.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    published = epath.Path(folder) / PUBLISHED
    if published.is_dir():
        return load_tokenizer(published, context_length=context_length, truncate=truncate)
    trained = Tokenizer(epath.Path(folder) / TRAINED)
    return TrainedTokenizer(trained, context_length=context_length, truncate=truncate)


def write_tokenizer(tokenizer: Tokenizer | CaptionTokenizer, folder: epath.PathLike) -> None:
    """Keeps a tokenizer in a work directory, so that a reader sees either nothing or all of it."""
    folder = epath.Path(folder)
    if isinstance(tokenizer, TrainedTokenizer):
        tokenizer = tokenizer.tokenizer
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder / TRAINED)
        return
    temporary = folder / f"{PUBLISHED}.tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer.files().items():
        (temporary / name).write_bytes(content)
    temporary.replace(folder / PUBLISHED)
