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


def ward_similarities(keys, x, weights, prefix: int) -> dict[int, list[float]]:
    """1 minus Ward's cost by the product of two distances: of the keys, over their root mean square, and of unit x."""
    targets, sources = partition(len(x), prefix)
    mean_square = sum(dot(key, key) for key in keys[prefix:]) / len(keys[prefix:])
    unit = [[value / math.hypot(*row) for value in row] for row in x]

    def cost(t, s):
        distance = math.dist(keys[t], keys[s]) / math.sqrt(mean_square) * math.dist(unit[t], unit[s])
        return weights[t] * weights[s] / (weights[t] + weights[s]) * distance

    return {s: [1 - cost(t, s) for t in targets] for s in sources}


def ward_weights(queries, keys, sizes, prefix: int, scale: float) -> list[float]:
    """The fourth root of size times class attention, over its mean for each original token; of sizes the square root.

    Args:
        queries, keys: of each head, of each token.
    """
    if not prefix:
        return [math.sqrt(size) for size in sizes]
    attention = [0.0] * len(sizes)
    for head_queries, head_keys in zip(queries, keys, strict=True):
        logits = [math.exp(scale * dot(head_queries[0], key)) for key in head_keys]
        attention = [a + e / sum(logits) / len(keys) for a, e in zip(attention, logits, strict=True)]
    mean = sum(attention[prefix:]) / sum(sizes[prefix:])
    return [(size * a / mean) ** 0.25 for size, a in zip(sizes, attention, strict=True)]


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
