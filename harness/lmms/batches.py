"""Which questions a model is asked together: batches of groups, a group being all questions about the same pictures."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

from lmms_eval.api.instance import Instance

Batch = list[list[int]]  # groups of requests, by index


def batches_of(requests: Sequence[Instance], size: int, begin: Sequence[Hashable | None]) -> list[Batch]:
    """Return batches of at most so many groups; a batch shares its generation settings.

    begin: what each prompt begins with, None for nothing to share. Groups of several questions come first, the largest
    in front, then the questions that are alone, the longest in front.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, (request, beginning) in enumerate(zip(requests, begin, strict=True)):
        settings = str(request.args[1])
        groups[(settings, index) if beginning is None else (settings, None, beginning)].append(index)
    batches: dict[Hashable, list[Batch]] = defaultdict(list)

    def put(settings: str, group: list[int]) -> None:
        mine = batches[settings, len(group) > 1]
        if not mine or len(mine[-1]) == size:
            mine.append([])
        mine[-1].append(group)

    def order(key: Hashable) -> tuple[int, int, int]:
        group = groups[key]
        return -len(group), -len(requests[group[0]].args[0]), group[0]

    for key in sorted(groups, key=order):
        put(str(requests[groups[key][0]].args[1]), groups[key])
    return [batch for mine in batches.values() for batch in mine]
