"""MaMe, MaRe and what they are compared with as loops over one sample, straight from their formulas.

A token is a list of numbers. Similarities and weights are given by the index of a source, over the targets.
"""

import math


def partition(tokens: int, prefix: int) -> tuple[list[int], list[int]]:
    patches = list(range(prefix, tokens))
    return patches[0::2], patches[1::2]


def dot(a, b) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine_similarities(y, prefix: int) -> dict[int, list[float]]:
    targets, sources = partition(len(y), prefix)
    return {s: [dot(y[t], y[s]) / math.sqrt(dot(y[t], y[t]) * dot(y[s], y[s])) for t in targets] for s in sources}


def correlation(a, b) -> float:
    (mean_a, mean_b), (a, b) = (sum(row) / len(row) for row in (a, b)), (list(a), list(b))
    a, b = [value - mean_a for value in a], [value - mean_b for value in b]
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def ward_similarities(keys, x, weights, prefix: int) -> dict[int, list[float]]:
    """Minus Ward's cost by the product of two distances, of the keys and of x: 1 minus their correlation."""
    targets, sources = partition(len(x), prefix)

    def cost(t, s):
        distance = (1 - correlation(keys[t], keys[s])) * (1 - correlation(x[t], x[s]))
        return 2 * weights[t] * weights[s] / (weights[t] + weights[s]) * distance

    return {s: [-cost(t, s) for t in targets] for s in sources}


def ward_weights(queries, keys, sizes, prefix: int, scale: float) -> list[float]:
    """Size times the root of exp of the class token's logit, mean over heads; over the harmonic mean of these roots.

    Args:
        queries, keys: of each head, of each token.
    """
    if not prefix:
        return list(sizes)
    logits = [
        scale * sum(dot(of[0], key[n]) for of, key in zip(queries, keys, strict=True)) / len(keys)
        for n in range(len(sizes))
    ]
    repulsion = [math.exp(-logit / 2) for logit in logits]
    mean = sum(repulsion[prefix:]) / len(repulsion[prefix:])
    return [size * mean / each for size, each in zip(sizes, repulsion, strict=True)]


def nearest_column(similarities: list[float]) -> list[float]:
    best = similarities.index(max(similarities))
    return [float(i == best) for i in range(len(similarities))]


def paper_column(similarities: list[float], tau: float, tolerance: float = 1e-4) -> list[float]:
    """The weights of one source over all targets; where none is similar enough, whole to the nearest."""
    weights = [max(s - tau, 0.0) for s in similarities]
    if sum(weights) == 0:
        return nearest_column(similarities)
    weights = [w / sum(weights) for w in weights]
    nonzero = [w for w in weights if w > 0]
    mean = sum(nonzero) / len(nonzero)
    weights = [max(w - (1 - tolerance) * mean, 0.0) for w in weights]
    return [w / sum(weights) for w in weights]


def removed(similarities: dict[int, list[float]], tau: float | None, r: int | None) -> list[int]:
    """The sources that leave: those above the threshold, or the r closest."""
    if r is None:
        return [s for s, row in similarities.items() if max(row) > tau]
    return sorted(similarities, key=lambda s: (-max(similarities[s]), s))[:r]


def merge(x, sizes, prefix: int, columns: dict[int, list[float]]):
    """Tokens, sizes and original positions that remain, in the order of the original positions.

    Args:
        columns: for each source that leaves, its weights over the targets.
    """
    targets, _ = partition(len(x), prefix)
    merged, merged_sizes = {n: list(row) for n, row in enumerate(x)}, dict(enumerate(sizes))
    for i, t in enumerate(targets):
        parts = [(sizes[t], x[t])] + [(w[i] * sizes[s], x[s]) for s, w in columns.items() if w[i] > 0]
        if len(parts) == 1:
            continue
        total = sum(size for size, _ in parts)
        mean = [sum(size * row[c] for size, row in parts) / total for c in range(len(x[t]))]
        merged[t], merged_sizes[t] = mean, total
    stays = [n for n in range(len(x)) if n not in columns]
    return [merged[n] for n in stays], [merged_sizes[n] for n in stays], stays


def restore(merged, stays, prefix: int, columns: dict[int, list[float]]):
    """The full sequence from the merged one."""
    tokens = len(stays) + len(columns)
    targets, _ = partition(tokens, prefix)
    value = dict(zip(stays, merged, strict=True))
    return [
        value[n] if n in value else [dot(columns[n], each) for each in zip(*(value[t] for t in targets), strict=True)]
        for n in range(tokens)
    ]


def merge_into(x, weights, sizes, going: dict[int, int], largest_norm: bool):
    """The tokens that stay and their sizes, one by one: means of their parts, or of the largest norm."""
    merged = {}
    for n in (n for n in range(len(x)) if n not in going):
        parts = [n, *(source for source, target in going.items() if target == n)]
        total = sum(weights[part] for part in parts)
        mean = [sum(weights[part] * x[part][c] for part in parts) / total for c in range(len(x[n]))]
        if largest_norm and len(parts) > 1:
            scale = max(math.hypot(*x[part]) for part in parts) / math.hypot(*mean)
            mean = [scale * value for value in mean]
        merged[n] = mean if len(parts) > 1 else x[n], sum(sizes[part] for part in parts)
    return merged
