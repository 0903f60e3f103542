"""Where captions end for models that do not say it: those that are read at the highest id of a caption."""

from typing import Any

from etils import epath

from clip_jax.config import ReadAt
from clip_jax.tokenizers.bpe_table import openai_table
from clip_jax.tokenizers.published import FILES, ClipTokenizer, load_tokenizer
from dalle_jax.errors import UserError


def end_at_highest(vocab_size: int, folder: str | None) -> dict[str, Any]:
    """The fields `end_id` and `read_at` of `TextConfig`.

    The end token is the highest id as long as it is the vocabulary's last. A vocabulary that goes on after it has spare
    rows, or tokens that were added: these are then read in its place, and so the model was trained.

    Args:
      vocab_size: of the model.
      folder: with its tokenizer; one that brings none has OpenAI's, and so has None.
    """
    end = _end_of(folder)
    if end >= vocab_size - 1:
        return {"end_id": vocab_size - 1}
    return {"end_id": end, "read_at": ReadAt.HIGHEST}


def end_of_settings(end: Any, where: str) -> int | None:
    """The `eos_token_id` of a `config.json`: a number, one in a list, or None.

    Raises:
      UserError: it is something else, which a tower that reads its feature at one token cannot follow.
    """
    if isinstance(end, list) and len(end) == 1:
        (end,) = end
    if end is None or (isinstance(end, int) and not isinstance(end, bool)):
        return end
    raise UserError(f"{where}/config.json: eos_token_id is {end!r}, and a text tower reads its feature at one token")


def _end_of(folder: str | None) -> int:
    if folder is not None and any((epath.Path(folder) / name).is_file() for name in FILES):
        try:
            tokenizer = load_tokenizer(folder)
        except UserError:  # said when captions are read by it
            pass
        else:
            if isinstance(tokenizer, ClipTokenizer):
                return tokenizer.end_id
    return len(openai_table()[0]) - 1
