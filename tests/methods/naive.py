"""Every method a second time, naively: one image, lists of floats, plain loops; no code shared with methods/.

A naive reduce gets n and a View whose fields are one image's nested lists ([N][D], [N], [G][N]). It returns the index,
the new hidden states and the new sizes, the last two None where the method leaves the tokens as they are.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from methods.interface import View

Outcome = tuple[list[int], list[list[float]] | None, list[float] | None]


def alone(view: View, image: int) -> View:
    """One image's view as nested lists of Python's floats."""
    return View(*(None if field is None else field[image].double().tolist() for field in view))


# scores


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def mean(vectors):
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def matmul(a, b):
    return [[dot(row, column) for column in zip(*b, strict=True)] for row in a]


def rollout(matrices, token, *, identity=False, renormalise=False):
    """Eq. 3 as written: N×N matrices, the later layer on the left; the token's row of the last product."""

    def plus_identity(matrix):
        step = [[value + (r == c) for c, value in enumerate(row)] for r, row in enumerate(matrix)]
        return [[value / sum(row) for value in row] for row in step] if renormalise else step

    rolled = plus_identity(matrices[0]) if identity else matrices[0]
    for matrix in matrices[1:]:
        rolled = matmul(plus_identity(matrix), rolled)
    return rolled[token]


def activation_weighted(attention, norms):
    products = [a * v for a, v in zip(attention, norms, strict=True)]
    return [each / sum(products) for each in products]


def outliers(scores):
    first, third = np.percentile(scores, [25, 75])
    return [score > third + 1.5 * (third - first) for score in scores]


def relevance(features, cls):
    return [cosine(feature, cls) for feature in features]


def map_relevance(scores, clip_spans, spans):
    """Eq. 7, character by character."""
    mapped = []
    for start, end in spans:
        touching = [
            score
            for score, (clip_start, clip_end) in zip(scores, clip_spans, strict=True)
            if set(range(start, end)) & set(range(clip_start, clip_end))
        ]
        mapped.append(sum(touching) / len(touching) if touching else -math.inf)
    return mapped


def guide(words, *, guidance, pseudo_cls, threshold):
    """The pseudo CLS and the character ranges of the words it is made of."""
    visual = words.projected_cls.tolist(), []
    embeddings, spans = words.embeddings.tolist(), words.spans
    if guidance == "none":
        return visual
    if guidance == "OTT":
        scores = [math.inf] * len(spans)
    elif guidance == "OTT+RT":
        scores = relevance(embeddings, visual[0])
    else:
        clip_scores = relevance(words.clip.features.tolist(), words.clip.cls.tolist())
        scores = map_relevance(clip_scores, words.clip.spans, spans)
    if pseudo_cls == "clip":
        chosen = [i for i, score in enumerate(clip_scores) if score >= threshold]
        if not chosen:
            return visual
        state = words.clip.lift(words.clip.features[chosen].mean(dim=0)).tolist()
        return state, [words.clip.spans[i] for i in chosen]
    chosen = [i for i, score in enumerate(scores) if score >= threshold]
    if not chosen:
        return visual
    state = mean([embeddings[i] for i in chosen])
    if pseudo_cls == "hybrid":
        state = mean([state, visual[0]])
    return state, [spans[i] for i in chosen]


# reductions


def best(scores, n):
    """The n best, best first; the earlier wins a tie."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n]


def everything(view) -> Outcome:
    return list(range(len(view.size))), None, None


def naive_random(view, n) -> Outcome:
    return sorted(best(view.random, n)), None, None


def centres_of_cells(before, after):
    """The patch at the middle of each cell; between two patches, the later."""
    middle = [math.floor((cell + 0.5) * before / after) for cell in range(after)]
    return [row * before + column for row in middle for column in middle]


def naive_pooling(view, n) -> Outcome:
    N, before, after = len(view.x), math.isqrt(len(view.x)), math.isqrt(n)

    def cell(i):  # every patch that the cell touches
        return [at for at in range(before) if (at + 1) * after > i * before and at * after < (i + 1) * before]

    x = [mean([view.x[r * before + c] for r in cell(i) for c in cell(j)]) for i in range(after) for j in range(after)]
    return centres_of_cells(before, after), x, [N / n] * n


def resized(line, size):
    """A line of pixels, bicubic (a = −½), the kernel stretched by the scale as an antialiasing resize does."""

    def cubic(t):
        t = abs(t)
        return 1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else max(0, 2 - t) * (0.5 * t**2 - 1.5 * t + 1)

    scale, out = len(line) / size, []
    for at in range(size):
        weights = [cubic((pixel + 0.5 - (at + 0.5) * scale) / scale) for pixel in range(len(line))]
        out.append(dot(weights, line) / sum(weights))
    return out


def naive_downsample(view, n) -> Outcome:
    N, before, after = len(view.x), math.isqrt(len(view.x)), math.isqrt(n)
    if n == N:
        return everything(view)
    p = math.isqrt(len(view.x[0]) // 3)
    x = [[0.0] * (3 * p * p) for _ in range(n)]
    for colour in range(3):
        image = [[0.0] * (before * p) for _ in range(before * p)]
        for row in range(before * p):
            for column in range(before * p):
                patch = view.x[row // p * before + column // p]
                image[row][column] = patch[colour * p * p + row % p * p + column % p]
        image = [resized(line, after * p) for line in image]
        image = list(zip(*(resized(line, after * p) for line in zip(*image, strict=True)), strict=True))
        for row in range(after * p):
            for column in range(after * p):
                x[row // p * after + column // p][colour * p * p + row % p * p + column % p] = image[row][column]
    return centres_of_cells(before, after), x, [N / n] * n


def naive_topk(view, n) -> Outcome:
    return sorted(best([cosine(x, view.cls) for x in view.x], n)), None, None


def weighted_sum(weights, vectors):
    return [dot(weights, column) for column in zip(*vectors, strict=True)]


def naive_evit(view, n) -> Outcome:
    if n >= len(view.x):
        return everything(view)
    order = best(view.attention, len(view.x))
    kept, rest = order[: n - 1], order[n - 1 :]
    fused = weighted_sum([view.attention[i] for i in rest], [view.x[i] for i in rest])
    sizes = [view.size[i] for i in kept] + [sum(view.size[i] for i in rest)]
    return kept + rest[:1], [view.x[i] for i in kept] + [fused], sizes


def naive_tome(view, n) -> Outcome:
    """ToMe as its paper tells it, token by token; CLS stands before the first patch."""
    N = len(view.x)
    if n == N:
        return everything(view)
    proposal = {}
    for a in range(1, N, 2):
        proposal[a] = max((cosine(view.keys[a], view.keys[b]), -b) for b in range(0, N, 2))
    merged = sorted(proposal, key=lambda a: (-proposal[a][0], a))[: N - n]
    index, x, sizes = [], [], []
    for first in [a for a in range(1, N, 2) if a not in merged] + list(range(0, N, 2)):
        members = [first] + [a for a in merged if -proposal[a][1] == first]
        total = sum(view.size[i] for i in members)
        index.append(first)
        x.append(weighted_sum([view.size[i] / total for i in members], [view.x[i] for i in members]))
        sizes.append(total)
    return index, x, sizes


def naive_tome_in_llm(view, n) -> Outcome:
    index, x, sizes = naive_tome(view, n)
    if x is None:
        return index, x, sizes
    order = sorted(range(n), key=lambda i: index[i])
    return [index[i] for i in order], [x[i] for i in order], [sizes[i] for i in order]


def around(view, centres) -> Outcome:
    """PruMerge: each centre plus its 32 nearest, and the token of all that are no centres."""
    N, index, x, sizes = len(view.x), [], [], []
    for centre in centres:
        others = [i for i in range(N) if i != centre]
        near = sorted(others, key=lambda i: (-cosine(view.keys[centre], view.keys[i]), i))[:32]
        added = weighted_sum([1.0] + [view.attention[i] for i in near], [view.x[i] for i in [centre, *near]])
        index.append(centre), x.append(added), sizes.append(view.size[centre])
    rest = [i for i in range(N) if i not in centres]
    if rest:
        index.append(max(rest, key=lambda i: (view.attention[i], -i)))
        x.append(weighted_sum([view.attention[i] for i in rest], [view.x[i] for i in rest]))
        sizes.append(sum(view.size[i] for i in rest))
    return index, x, sizes


def outlying(view):
    return {i for i, far in enumerate(outliers(view.attention)) if far} | set(best(view.attention, 1))


def naive_prumerge_adaptive(view, n) -> Outcome:
    return around(view, sorted(outlying(view)))


def naive_prumerge(view, n) -> Outcome:
    return everything(view) if n >= len(view.x) else around(view, sorted(best(view.attention, n - 1)))


def naive_prumerge_plus_adaptive(view, n) -> Outcome:
    N, centres = len(view.x), outlying(view)
    step = max(1, int(int(N / len(centres)) / 3))
    return around(view, sorted(centres | set(range(0, N - 1, step))))


def naive_prumerge_plus(view, n) -> Outcome:
    N, centres = len(view.x), n - 1
    if n >= N:
        return everything(view)
    by_attention = min(centres, max(1, round(centres / 4)))
    chosen = best(view.attention, by_attention)
    left = [i for i in range(N) if i not in chosen]
    evenly = centres - by_attention
    return around(view, sorted(chosen + [left[math.floor(len(left) * each / evenly)] for each in range(evenly)]))


def naive_visionzip(view, n, contextual=None) -> Outcome:
    N = len(view.x)
    if n >= N:
        return everything(view)
    if contextual is None:
        contextual = round(n * 5 / 32)
    dominant = sorted(best(view.attention, n - contextual - 1))
    rest = [i for i in range(N) if i not in dominant]
    targets = rest[:: len(rest) // contextual][:contextual] if contextual else []
    others = [i for i in rest if i not in targets]
    members = {target: [] for target in targets}
    for other in others if targets else []:
        nearest = max(targets, key=lambda target: (cosine(view.keys[other], view.keys[target]), -target))
        members[nearest].append(other)
    x, sizes = [view.cls] + [view.x[i] for i in dominant], [1.0] + [view.size[i] for i in dominant]
    for target, joined in members.items():
        gain = mean([view.x[i] for i in joined]) if joined else [0.0] * len(view.x[0])
        x.append([a + b for a, b in zip(view.x[target], gain, strict=True)])
        sizes.append(view.size[target] + sum(view.size[i] for i in joined))
    return [others[0], *dominant, *targets], x, sizes


def naive_divprune(view, n) -> Outcome:
    N = len(view.x)
    far = [[1 - cosine(a, b) for b in view.x] for a in view.x]
    picked = []
    while len(picked) < n:
        left = [i for i in range(N) if i not in picked]
        nearest = {i: min((far[i][j] for j in picked or range(N) if j != i), default=0.0) for i in left}
        picked.append(max(left, key=lambda i: (nearest[i], -i)))
    return sorted(picked), None, None


def naive_by_attention(view, n) -> Outcome:
    """FastV and PyramidDrop, which differ in whose attention it is."""
    return sorted(best(view.attention, n)), None, None


def density_peaks(points, clusters):
    """DPC-kNN: the centres, best first, and the number of each point's cluster."""
    M = len(points)
    far = [[math.dist(a, b) / math.sqrt(len(a)) for b in points] for a in points]
    density = [math.exp(-sum(d * d for d in sorted(row)[:clusters]) / clusters) for row in far]
    scores = []
    for i in range(M):
        denser = [far[i][j] for j in range(M) if density[j] > density[i]]
        scores.append(density[i] * (min(denser) if denser else max(map(max, far))))
    centres = best(scores, clusters)
    cluster = [centres.index(i) if i in centres else best([-far[i][c] for c in centres], 1)[0] for i in range(M)]
    return centres, cluster


def recycled(dropped):
    """SparseVLM: how many of the dropped are looked at again, and how many tokens they become."""
    looked_at = int(0.3 * dropped) + 1 if dropped else 0
    return looked_at, looked_at // 10 + 1 if dropped else 0


def naive_sparsevlm(view, n) -> Outcome:
    N = len(view.x)
    if n >= N:
        return everything(view)
    kept = n
    while kept and kept + recycled(N - kept)[1] > n:
        kept -= 1
    order = best(view.attention, N)
    stay, pool = sorted(order[:kept]), sorted(order[kept : kept + recycled(N - kept)[0]])
    centres, cluster = density_peaks([view.x[i] for i in pool], n - kept)
    x, sizes = [view.x[i] for i in stay], [view.size[i] for i in stay]
    for number in range(len(centres)):
        members = [i for i, own in zip(pool, cluster, strict=True) if own == number]
        x.append(mean([view.x[i] for i in members])), sizes.append(sum(view.size[i] for i in members))
    return stay + [pool[i] for i in centres], x, sizes


AGGREGATE = {"mean": lambda column: sum(column) / len(column), "max": max, "multiply": math.prod}


def naive_ivtp(view, n, aggregation=None) -> Outcome:
    """Eq. 4 over one row, the rollout's or one layer's, or over a group's rows brought together."""
    attention = view.attention
    if aggregation is not None:
        attention = [AGGREGATE[aggregation](column) for column in zip(*view.rows, strict=True)]
    return sorted(best(activation_weighted(attention, view.value_norm), n)), None, None


# the table


class Naive(NamedTuple):
    """A way to set a method up, and the naive reduce of each of its stages."""

    reduces: tuple[Callable[[View, int], Outcome], ...]
    parameters: Mapping[str, object] = MappingProxyType({})
    least: int = 1  # the smallest budget that these parameters allow
    adaptive: bool = False  # without tokens


def groupwise(towers: int) -> tuple[Naive, ...]:
    return (
        Naive((naive_ivtp,) * towers),
        Naive((naive_ivtp,) * towers, {"scope": "group-wise"}),
        Naive((naive_ivtp,) * towers, {"scope": "layer-wise"}),
        *(Naive((partial(naive_ivtp, aggregation=way),) * towers, {"aggregation": way}) for way in AGGREGATE),
    )


KEPT = {"budget": "kept"}
NAIVE: dict[str, tuple[Naive, ...]] = {
    "random": (Naive((naive_random,)),),
    "pooling": (Naive((naive_pooling,)),),
    "downsample": (Naive((naive_downsample,)),),
    "topk": (Naive((naive_topk,)),),
    "evit": (Naive((naive_evit,)),),
    "tome": (Naive((naive_tome,)),),
    "prumerge": (Naive((naive_prumerge,)), Naive((naive_prumerge_adaptive,), adaptive=True)),
    "prumerge+": (Naive((naive_prumerge_plus,)), Naive((naive_prumerge_plus_adaptive,), adaptive=True)),
    "visionzip": (
        Naive((naive_visionzip,)),
        Naive((partial(naive_visionzip, contextual=0),), {"contextual": 0}),
        Naive((partial(naive_visionzip, contextual=3),), {"contextual": 3}, least=4),
    ),
    "divprune": (Naive((naive_divprune,)),),
    "fastv": (Naive((naive_by_attention,), KEPT),),
    "pyramiddrop": (Naive((naive_by_attention,), KEPT),),
    "sparsevlm": (Naive((naive_sparsevlm,), KEPT),),
    "topk+": (Naive((naive_topk, naive_topk)),),
    "tome+": (Naive((naive_tome, naive_tome_in_llm)),),
    "ivtp-v": groupwise(1),
    "ivtp": groupwise(2),
}
