"""The classes of a data set's splits, brought together by their names."""

from collections.abc import Mapping

from dalle_jax.data.records import Source
from dalle_jax.data.relabelled import Relabelled
from dalle_jax.errors import UserError


def labelled_alike(data: str, parts: Mapping[str, Source]) -> dict[str, Source]:
    """Splits whose labels count in one order: that of the split with the most classes.

    Splits that do not name their classes are labelled by numbers, which mean the same in all of them.

    Args:
      data: the data set, for messages.
      parts: its splits, by the flag that names each.

    Raises:
      UserError: a split has classes that another does not have, and the other way round.
    """
    named = {flag: part for flag, part in parts.items() if part.class_names}
    if not named:
        return dict(parts)
    unnamed = next((flag for flag in parts if flag not in named), None)
    if unnamed is not None:
        raise UserError(f"{data}: the split of --{unnamed} does not name its classes, and --{next(iter(named))} does")
    most = max(named, key=lambda flag: len(named[flag].class_names))
    names = named[most].class_names
    for flag, part in named.items():
        other = [name for name in part.class_names if name not in set(names)]
        if other:
            raise UserError(
                f"{data}: --{flag} has {len(other)} class(es) that --{most} has not, such as '{other[0]}', though that "
                f"has {len(names)}: the splits of a data set have the same classes"
            )
    return {flag: part if part.class_names == names else Relabelled(part, names) for flag, part in named.items()}
